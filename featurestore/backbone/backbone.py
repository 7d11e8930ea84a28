"""A frozen timm vision transformer with its own preprocessing: tiles in, tokens out.

Where its weights come from is left to `load.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featurestore.backbone.device import PRECISIONS
from featurestore.backbone.forward import Forward
from featurestore.backbone.lane import Lane
from featurestore.backbone.rounding import int8_rounded
from featurestore.backbone.timm_model import short
from featurestore.errors import InputError
from featurestore.format.spec import MAX_PIXELS, TokenSpec, ViewSpec
from featurestore.photos.crop import Crop
from featurestore.photos.views import make_view, normalise, view_amounts


@dataclass(frozen=True)
class Row:
    """A view of a photograph, before its tokens are made."""

    image_id: str
    view: ViewSpec
    tiles_T3HW: Tensor
    """As `Backbone.on_device` gives them; all views of a photograph may share them."""


@dataclass(frozen=True)
class Batch:
    """Tokens of R rows, on the device."""

    rows: Sequence[Row | None]
    """None was an empty place."""
    layers: Sequence[int]
    cls_RTD: Tensor
    """float16; D holds all layers one after another."""
    patches_RTPD: Tensor
    is_finite_RL: Tensor
    """Whether a row's tokens of each layer are finite."""

    def check(self, is_finite_RL: Tensor) -> None:
        """InputError, naming image, view and layer, where a token is not finite or does not fit
        float16.

        is_finite_RL : the batch's own, or a copy; the host waits for it here.
        """
        for row, of_layers in zip(self.rows, is_finite_RL.tolist(), strict=True):
            if row is None or all(of_layers):
                continue
            layer = self.layers[of_layers.index(False)]
            raise InputError(
                f"image {row.image_id!r}, view {row.view.name!r}, layer {layer}: tokens are not "
                "finite or beyond float16's 65504; "
                "try --precision fp32, or check the photograph and the weights"
            )


@dataclass(frozen=True)
class Backbone:
    """A loaded model on its device, and what makes its tokens these tokens."""

    forward: Forward
    spec: TokenSpec
    device: torch.device
    dtype: torch.dtype
    lane: Lane
    batch: int
    """Crops that go through the model at once, always as many."""
    max_pixels: int = MAX_PIXELS
    """Of the photographs that are read for it."""

    @property
    def model(self) -> nn.Module:
        return self.forward.model

    @property
    def crop(self) -> Crop:
        return Crop.of(self.spec, self.max_pixels)

    @property
    def precision(self) -> str:
        """What it computes in, as `--precision` names it."""
        return next(name for name, dtype in PRECISIONS.items() if dtype == self.dtype)

    @property
    def n_rows(self) -> int:
        """Rows of a batch: a row's tiles stay together, also where a batch holds fewer."""
        return max(1, self.batch // self.spec.n_tiles)

    def on_device(self, tiles_THW3: Tensor) -> Tensor:
        """(T, H, W, 3) uint8, as `crop` gives them -> (T, 3, H, W) float32 in [0, 1], there."""
        tiles_T3HW = self.lane.up(tiles_THW3).permute(0, 3, 1, 2)
        return tiles_T3HW.float().div_(255)

    def tokens(self, tiles_THW3: Tensor, image_id: str, view: ViewSpec) -> tuple[Tensor, Tensor]:
        """Tokens of one view of one photograph.

        Parameters
        ----------
        tiles_THW3 : (T, H, W, 3) uint8, as `crop` gives them.

        Returns
        -------
        cls_TD, patches_TPD : (T, D) and (T, P, D) float16 on the device; D holds all layers one
            after another. Where the spec's dtype is int8, patch tokens are rounded as those of the
            restored archive were.

        Raises InputError, naming image, view and layer, where a token is not finite or does not fit
        float16.
        """
        row = Row(image_id, view, self.on_device(tiles_THW3))
        return next(self.tokens_of([row]))

    def tokens_of(self, rows: Sequence[Row]) -> Iterator[tuple[Tensor, Tensor]]:
        """`tokens` of each row, made a batch at a time."""
        for start in range(0, len(rows), self.n_rows):
            some = rows[start : start + self.n_rows]
            batch = self.encode(some)
            batch.check(batch.is_finite_RL)
            for r in range(len(some)):
                yield batch.cls_RTD[r], batch.patches_RTPD[r]

    def encode(self, rows: Sequence[Row | None]) -> Batch:
        """Tokens of at most `n_rows` rows at their places; nothing is checked yet.

        On a device nothing waits here for what it computes.
        """
        padded = [*rows, *[None] * (self.n_rows - len(rows))]
        cls, patches = self.forward(self._inputs(padded))
        is_finite = []
        for cls_BD, patches_BPD in zip(cls, patches, strict=True):
            # one number a row is enough: inf and NaN stay in a sum, and halves cannot overflow it
            patches_RX = patches_BPD.reshape(self.n_rows, -1)
            sum_R = patches_RX.sum(1, dtype=torch.float32)
            cls_RX = cls_BD.reshape(self.n_rows, -1)
            is_finite_R = torch.isfinite(cls_RX).all(1)
            is_finite_R &= torch.isfinite(sum_R)
            is_finite.append(is_finite_R)

        patches_BPD = torch.cat(patches, -1)
        if self.spec.dtype == "int8":
            # heads learned on tokens of an archive: predict must round as it did
            patches_BPD = int8_rounded(patches_BPD)
        cls_BD = torch.cat(cls, -1)
        tiles = (self.n_rows, -1)
        return Batch(
            padded,
            self.spec.layers,
            cls_BD.unflatten(0, tiles),
            patches_BPD.unflatten(0, tiles),
            torch.stack(is_finite, 1),
        )

    def _inputs(self, rows: Sequence[Row | None]) -> Tensor:
        """(B, 3, H, W) as the model takes it; empty places are zeros."""
        made = []
        for row in rows:
            if row is None:
                made.append(None)
                continue
            amounts = view_amounts(row.view, self.spec.seed, row.image_id)
            x = make_view(row.tiles_T3HW, row.view, amounts)
            x = normalise(x, self.spec.mean, self.spec.std)
            # in float32 up to here: a view's pixels are the same in every precision
            x = x.to(self.dtype)
            if len(rows) > 1:
                # a hsv view has another order in memory, which torch would give its neighbours too;
                # convolutions round by that order on some CPUs (Zen 3)
                x = x.contiguous(memory_format=torch.channels_last)
            made.append(x)
        if len(made) == 1:
            return made[0]

        first = next(x for x in made if x is not None)
        empty = torch.zeros_like(first)
        filled = [empty if x is None else x for x in made]
        return torch.cat(filled)

    def try_out(self) -> None:
        """Pass one grey tile through the model, so that it fails before a store is laid out."""
        try:
            size = 1, 3, self.spec.tile_height, self.spec.tile_width
            self.forward.once(torch.zeros(size, dtype=self.dtype, device=self.device))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as err:
            raise InputError(
                f"{self.spec.model}: cannot be used on {self.device} in {self.precision}, a trial "
                f"with a grey tile failed ({short(err)}); "
                "try --precision fp32, or another --device or backbone"
            ) from err
