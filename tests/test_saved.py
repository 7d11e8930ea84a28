"""Heads of somebody else's, or spoilt: what a file says it holds is compared with what its run
makes, before it is read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import biomass
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sweeps import config

from featurestore.errors import InputError, MismatchError, StoreDamaged
from predictor.members.member import Member
from trainer.heads import kinds
from trainer.heads.saved import read_header
from trainer.loop.checkpoint import Checkpoint, checksum
from trainer.loop.identity import Identity
from trainer.loop.prepare import prepare_sweep
from trainer.loop.runs import RunFolder
from trainer.loop.sweep import train_step

HEAD = "weights/last_fold0.safetensors"


@pytest.fixture
def run(sweep, tmp_path) -> Path:
    """A copy of the density run, whose head is to be spoilt."""
    return copied(sweep, "density", tmp_path)


def copied(sweep: Path, kind: str, tmp_path: Path) -> Path:
    (found,) = sweep.glob(f"*kind-{kind}")
    return Path(shutil.copytree(found, tmp_path / found.name))


def write(path: Path, entries: list[tuple[str, str, list[int]]], data: bytes) -> None:
    """A safetensors file as its header is given: name, type and shape one after another, equal
    names too."""
    at, parts, sizes = 0, [], {"F32": 4, "I32": 4, "F64": 8}
    for name, dtype, shape in entries:
        end = at + sizes[dtype] * int(np.prod(shape))
        parts.append(
            f'{json.dumps(name)}:{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{at},{end}]}}'
        )
        at = end
    header = ("{" + ",".join(parts) + "}").encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def entries_of(path: Path) -> list[tuple[str, str, list[int]]]:
    return [(name, dtype, list(shape)) for name, (dtype, shape) in read_header(path).items()]


def body_of(path: Path) -> bytes:
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def as_i32(path: Path) -> None:
    write(path, [(name, "I32", shape) for name, _, shape in entries_of(path)], body_of(path))


def with_another(path: Path) -> None:
    save_file(load_file(path) | {"extra.weight": torch.zeros(3)}, path)


def with_one_less(path: Path) -> None:
    save_file(dict(list(load_file(path).items())[1:]), path)


def of_another_shape(path: Path) -> None:
    save_file({name: tensor[..., None] for name, tensor in load_file(path).items()}, path)


def in_float64(path: Path) -> None:
    save_file({name: tensor.double() for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize(
    "spoil, says",
    [
        (as_i32, r"density\.bias: I32 \[5\], expected F32 \[5\]"),
        (with_another, r"extra\.weight: not expected"),
        (with_one_less, "missing"),
        (of_another_shape, r"density\.bias: F32 \[5, 1\], expected F32 \[5\]"),
        (in_float64, "F64"),
    ],
)
def test_K10_names_types_and_shapes_must_be_those_of_the_run(run, spoil, says):
    spoil(run / HEAD)
    with pytest.raises(MismatchError, match=says) as raised:
        Member.load(run)
    assert str(run / HEAD) in str(raised.value)


def equal_names(path: Path) -> None:
    entries, body = entries_of(path), body_of(path)
    name, dtype, shape = entries[0]
    write(path, [*entries, (name, dtype, shape)], body + bytes(4 * int(np.prod(shape))))


def many_empty_tensors(path: Path) -> None:
    write(path, [*entries_of(path), *((f"x{i}", "F32", [0]) for i in range(20_000))], body_of(path))


def not_finite(path: Path) -> None:
    tensors = load_file(path)
    tensors["density.weight"][2, 3] = torch.nan
    save_file(tensors, path)


def no_header(path: Path) -> None:
    path.write_bytes((5).to_bytes(8, "little") + b"[1,2]")


def nested(path: Path) -> None:
    path.write_bytes((60_000).to_bytes(8, "little") + b"[" * 60_000)


@pytest.mark.parametrize(
    "spoil, says",
    [
        (equal_names, "is there twice"),
        (many_empty_tensors, r"a header of \d+ bytes, at most 65536 are read"),
        (not_finite, r"values of density\.weight are not finite"),
        (no_header, "damaged"),
        (nested, "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "damaged"),
    ],
    ids=["equal names", "20,000 tensors", "NaN", "no header", "nested", "empty", "cut"],
)
def test_K10_a_file_that_is_no_heads_is_refused(run, spoil, says):
    spoil(run / HEAD)
    with pytest.raises(InputError, match=says) as raised:
        Member.load(run)
    assert str(run / HEAD) in str(raised.value)


@pytest.mark.parametrize("kind, name", [("ridge", "weight_FM"), ("gpr", "coef_MK")])
def test_K10_regressors_are_compared_as_well(sweep, tmp_path, kind, name):
    run = copied(sweep, kind, tmp_path)
    Member.load(run)
    tensors = load_file(run / HEAD)
    save_file(tensors | {name: tensors[name].to(torch.int32)}, run / HEAD)
    with pytest.raises(MismatchError, match=rf"{name}: I32"):
        Member.load(run)
    save_file(tensors | {name: tensors[name][:-1].contiguous()}, run / HEAD)
    with pytest.raises(
        MismatchError, match=rf"{name}: F64 .*, expected F64|support_MF: F32 .*, expected F32"
    ):
        Member.load(run)


@pytest.mark.usefixtures("small_searches")
@pytest.mark.parametrize("name", ["ridge", "kernel_ridge", "svr", "pls", "gpr"])
def test_K10_a_regressor_saves_what_it_says(name):
    rng = np.random.default_rng(0)
    kind, x_NF = kinds.load(name), rng.normal(size=(30, 4))
    state = kind.fit(x_NF, rng.gamma(2, 1, (30, 5)), np.arange(30) % 6, 0)
    said = kind.tensors(4, 5)
    assert state.keys() == said.keys()
    for key, (dtype, axes) in said.items():
        assert state[key].dtype == {"F32": np.float32, "F64": np.float64}[dtype]
        assert all(axis in ("M", size) for axis, size in zip(axes, state[key].shape, strict=True))


def test_K10_every_head_that_was_saved_is_still_read(sweep):
    for run in sweep.glob("*kind-*"):
        assert len(RunFolder(run).heads("last")) == 2


def test_K10_predict_and_bundle_refuse_a_foreign_head(sweep, pasture, tmp_path):
    run = copied(sweep, "density", tmp_path)
    as_i32(run / HEAD)
    out = tmp_path / "submission.csv"
    command = ["--data", pasture, "--backbone-weights", "random", "--device", "cpu"]
    message = biomass("predict", "--run", run, *command, "--out", out, code=5).stderr
    assert f"{run / HEAD}: not a head of this run" in message and not out.exists()
    assert (
        "not a head of this run"
        in biomass("bundle", run, "--out", tmp_path / "bundle", code=5).stderr
    )


def checkpoint_of(tmp_path: Path, store: Path) -> tuple[Checkpoint, list, Identity]:
    """A checkpoint in the middle of an epoch of two banks, and what loads it."""
    whole = prepare_sweep(config(tmp_path, store), "cpu")
    trainers, reader = whole.trainers(range(4)), whole.reader()
    train_step(whole, trainers, reader, 0, 0)
    checkpoint = Checkpoint(tmp_path / "points0-3.safetensors")
    checkpoint.save(trainers, Identity.of(whole, range(4)))
    return checkpoint, whole.trainers(range(4)), Identity.of(whole, range(4))


def again(path: Path, tensors: dict, metadata: dict) -> None:
    """Saved with a checksum that is right."""
    metadata["crc32c"] = checksum(sorted(tensors.items()), metadata["identity"])
    save_file(tensors, path, metadata)


def in_i32(tensors: dict) -> None:
    tensors["0/weights/main_head.weight"] = tensors["0/weights/main_head.weight"].int()


def that_broadcasts(tensors: dict) -> None:
    tensors["0/average/main_head.bias"] = tensors["0/average/main_head.bias"][..., :1].contiguous()


def with_more(tensors: dict) -> None:
    tensors["2/weights/main_head.weight"] = torch.zeros(3)


def without_a_moment(tensors: dict) -> None:
    del tensors["1/adamw/0/exp_avg"]


@pytest.mark.parametrize(
    "spoil, says",
    [
        (in_i32, "I32"),
        (that_broadcasts, "expected F32"),
        (with_more, "not expected"),
        (without_a_moment, "missing"),
    ],
)
def test_K10_a_checkpoint_is_compared_with_its_pass(tmp_path, store, spoil, says):
    checkpoint, fresh, identity = checkpoint_of(tmp_path, store)
    with safe_open(checkpoint.path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(checkpoint.path)
    checkpoint.load(fresh, identity)
    spoil(tensors)
    again(checkpoint.path, tensors, metadata)
    with pytest.raises(StoreDamaged, match=f"not a checkpoint of this sweep .*{says}"):
        checkpoint.load(fresh, identity)


def test_K10_a_checkpoint_of_many_empty_tensors_is_not_read(tmp_path, store):
    checkpoint, fresh, identity = checkpoint_of(tmp_path, store)
    write(checkpoint.path, [(f"x{i}", "F32", [0]) for i in range(20_000)], b"")
    with pytest.raises(StoreDamaged, match=r"a header of \d+ bytes"):
        checkpoint.load(fresh, identity)
