"""What an older timm lacks is told by versions, and the docs list those that a bundle needs."""

import json
import re
import shutil
from configparser import ConfigParser
from pathlib import Path

import pytest
import timm
import torch
from commands import biomass

from featurestore import FeatureStore
from featurestore.backbone.load import backbone_of_store
from featurestore.errors import InputError, MismatchError
from featurestore.format.spec import StoreSpec

ROOT = Path(__file__).parent.parent


def made_with(spec: StoreSpec, version: str, **tokens: object) -> StoreSpec:
    return spec.changed(
        tokens=spec.tokens.changed(**tokens), made_by=spec.made_by | {"timm": version}
    )


@pytest.fixture(scope="module")
def spec(built) -> StoreSpec:
    return FeatureStore.open(built).spec


@pytest.mark.parametrize(
    "tokens, error",
    [
        ({"model": "vit_of_tomorrow"}, InputError),
        ({"width": 192}, MismatchError),
        ({"weights_sha256": "1" * 64}, MismatchError),
    ],
    ids=["unknown model", "other width", "other weights"],
)
def test_an_older_timm_is_told_with_the_version_to_install(spec, tokens, error):
    newer = made_with(spec, "99.1.2", **tokens)
    with pytest.raises(error) as caught:
        backbone_of_store(newer, None, [], "--backbone-weights", "cpu")
    assert str(caught.value).endswith(
        f"(the tokens were made with timm 99.1.2 and torch {spec.made_by['torch']}; here are timm "
        f"{timm.__version__} and torch {torch.__version__}: install timm 99.1.2 or newer)"
    )


@pytest.mark.parametrize("version", ["1.0.9", timm.__version__, "1.0.9 + 1.0.10"])
def test_no_version_is_blamed_where_timm_is_as_new(spec, version):
    with pytest.raises(MismatchError, match="give the file that has them with --backbone-weights$"):
        backbone_of_store(
            made_with(spec, version, weights_sha256="1" * 64), None, [], "--backbone-weights", "cpu"
        )


def test_the_newest_of_several_versions_counts(spec):
    mixed = made_with(spec, "99.1.9 + 99.1.10", weights_sha256="1" * 64)
    with pytest.raises(MismatchError, match="install timm 99.1.10 or newer"):
        backbone_of_store(mixed, None, [], "--backbone-weights", "cpu")


def test_predict_names_the_versions_a_run_needs(sweep, pasture, tmp_path):
    """As a bundle's run on a machine whose timm lacks the model."""
    copy = Path(
        shutil.copytree(
            next(path.parent for path in sweep.glob("*/spec.json") if "ridge" in path.parent.name),
            tmp_path / "run",
        )
    )
    told = json.loads((copy / "spec.json").read_text())
    newer = made_with(
        StoreSpec.from_json(json.dumps(told["store"]), "spec.json"),
        "99.1.2",
        model="vit_of_tomorrow",
    )
    (copy / "spec.json").write_text(json.dumps(told | {"store": json.loads(newer.to_json())}))
    stderr = biomass(
        "predict", "--run", copy, "--data", pasture, "--tta", 1, "--out", tmp_path / "s.csv", code=3
    ).stderr
    assert "vit_of_tomorrow: timm" in stderr and "install timm 99.1.2 or newer" in stderr


def test_the_docs_list_the_versions_that_predicting_needs():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    needed = dict(line.split(">=") for line in config["options"]["install_requires"].split())
    told = dict(
        re.findall(r"^\| (\w+) \| ([\d.]+)", (ROOT / "docs/bundle.md").read_text(), flags=re.M)
    )
    assert told.pop("Python") == config["options"]["python_requires"].removeprefix(">=")
    names = {
        "torch",
        "torchvision",
        "timm",
        "numpy",
        "pandas",
        "Pillow",
        "safetensors",
        "pydantic",
        "PyYAML",
        "tqdm",
        "click",
        "scipy",
        "Jinja2",
    }
    assert told == {name: needed[name] for name in names}
