"""Everything that `store build` can be told."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from featurestore.backbone.device_name import is_device
from featurestore.disk.validation import explained
from featurestore.errors import InputError, UsageError
from featurestore.format.spec import Fit, named_crop
from featurestore.photos.view_names import chosen_names


class BuildConfig(BaseModel):
    """Everything `store build` can be told; the keys of its `--config` are these."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path
    """Folder of the photographs, and of train.csv unless `csv` is given."""
    out: Path
    """The store: NAME.h5 or NAME.zarr."""
    csv: Path | None = None
    """The table to read instead of train.csv in `data`, where its paths start all the same."""
    backbone: str = "vit_huge_plus_patch16_dinov3"
    """timm name of a vision transformer with a class token."""
    image_size: Annotated[int, Field(ge=1)] = 960
    """Pixels, the side of a tile (crop whole: its short side)."""
    crop: str = "halves"
    """squash: the whole picture to one square; halves: left and right square of a 2:1 picture;
    grid:RxC: R rows of C squares; center: the largest square in the middle; whole: keep the
    aspect."""
    fit: Fit | None = None
    """Of a photograph whose aspect does not fit the crop: squash it, take its middle (crop), or
    show all of it amid padding (pad); nothing refuses it."""
    bits: Annotated[int, Field(ge=8, le=16)] | None = None
    """How many bits the values of 16-bit photographs have, e.g. 12; nothing takes them for 16."""
    max_pixels: Annotated[int, Field(ge=1)] | None = None
    """The most pixels that a photograph may have; nothing is 80 million, or what the store has."""
    views: str = "20"
    """How many of the views, or their names with commas."""
    layers: Annotated[tuple[int, ...], Field(min_length=1)] = (-1,)
    """Blocks whose normed tokens are kept, one after another along the width."""
    weights: str | None = None
    """FILE.safetensors, `random`, or nothing for timm's download."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; of `build_on_devices` several with commas."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """What the backbone computes in; tokens are stored as float16. auto: what the store has; in a
    new one half precision, where the device multiplies it fast and tokens stay near those in fp32,
    else fp32, as on every CPU."""
    batch: Annotated[int, Field(ge=1)] | None = None
    """Tiles that go through the backbone at once, of several views and photographs; nothing is
    those of one photograph, or what the store has."""
    seed: int = 0
    """Keys the views' draws and random weights."""
    tokens: Literal["all", "pooled"] = "all"
    """pooled: class tokens and pooled vectors alone, enough for regressors and the pooled_mlp head.
    With P patches a tile they take about 11 / (11 + P) of the room of all tokens: 0.3 % at 3600
    patches, 7 % at 144."""
    pooled_dtype: Literal["float32", "float16"] = "float32"
    """Of the pooled vectors; float16 halves a pooled store."""
    thumbs: bool = True
    """Keep small pictures of the photographs."""
    reserve: Annotated[int, Field(ge=0)] = 0
    """Rows kept free for images to come."""
    skip_missing: bool = False
    """Go without photographs that are missing or damaged; their status in the catalog says so."""
    allow_outside: bool = False
    """Take photographs from outside the data folder too."""
    check_space: bool = True
    """Refuse to begin what the disk cannot hold."""
    wait: bool = False
    """Wait for another builder to end rather than stop with exit code 75."""
    lock: bool = True
    """Hold the builder's lock; without it, on file systems that have none, nothing keeps a second
    builder out."""
    save_weights: bool = True
    """Keep the weights beside the store, where predict finds them."""

    @property
    def table(self) -> Path:
        """The CSV that names the photographs."""
        return self.csv or self.data / "train.csv"

    @field_validator("views", mode="before")
    @classmethod
    def _views_may_be_a_number(cls, value: object) -> object:
        return str(value) if type(value) is int else value  # YAML's 4; an option gives "4"

    @field_validator("views")
    @classmethod
    def _views_are_known(cls, value: str) -> str:
        try:
            chosen_names(value)
        except InputError as err:
            raise ValueError(str(err).removeprefix("views: ")) from err
        return value

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, value: str) -> str:
        if not all(is_device(each) for each in value.split(",")):
            raise ValueError(f"found {value!r}, expected auto, cpu, cuda or cuda:N")
        return value

    @field_validator("crop")
    @classmethod
    def _crop_by_its_name(cls, value: str) -> str:
        return named_crop(value)

    @field_validator("layers", mode="before")
    @classmethod
    def _layers_may_be_one_or_text(cls, value: object) -> object:
        if isinstance(value, str):
            return value.split(",")
        return [value] if type(value) is int else value

    @classmethod
    def check(
        cls, config: Path | None = None, typed: Collection[str] = (), **values: object
    ) -> "BuildConfig":
        """The config, or InputError naming the option or key that is wrong.

        config : the file that some of the values are from; typed : keys whose values were given as
            options.
        """
        try:
            return cls(**values)
        except ValidationError as err:
            wrong = err.errors(include_url=False)
            missing = [f"--{each['loc'][0]}" for each in wrong if each["type"] == "missing"]
            if missing:
                raise UsageError(
                    f"{' and '.join(missing)} must be given, here or in --config"
                ) from err

            first = wrong[0]
            key = str(first["loc"][0])
            where = f"{config}: {key}" if config else key
            if key in typed:
                where = f"--{key.replace('_', '-')}"
            what = explained(first)
            if first["type"] == "extra_forbidden":
                what = f"no such key; known: {', '.join(cls.model_fields)}"
            raise InputError(f"{where}: {what}") from err
