"""`biomass weights convert` alone reads pickles: of tensors, in a confined process."""

import io
import os
import pickle
import subprocess
import sys

import pytest
import torch
from commands import biomass
from safetensors.torch import load_file

from featurestore.backbone import convert_child
from featurestore.backbone.convert import check_torch
from featurestore.errors import InputError

ATTEMPTS = """
import ctypes, os, socket, subprocess, sys
from pathlib import Path
from featurestore.backbone import convert_child

out, other = Path(sys.argv[1]), Path(sys.argv[2])
without_network = convert_child.leave_network()
convert_child.limit_memory(1 << 28)
convert_child.confine(out)
attempts = {
    "socket": socket.socket,
    "process": lambda: subprocess.run(["true"]),
    "shell": lambda: os.system("true"),
    "fork": os.fork,
    "write": lambda: open(other, "w"),
    "append": lambda: open(other, "ab"),
    "create": lambda: os.open(other, os.O_CREAT),
    "remove": lambda: os.remove(other),
    "rename": lambda: os.rename(out, other),
    "folder": lambda: os.mkdir(other),
    "library": lambda: ctypes.CDLL(None),
    "memory": lambda: bytearray(1 << 29),
    "output": lambda: out.write_bytes(b"x"),
    "read": lambda: open("/proc/self/net/dev").read(),
}
for name, attempt in attempts.items():
    try:
        attempt()
        print(name, "done")
    except (convert_child.Refused, MemoryError) as err:
        print(name, type(err).__name__)
if without_network:
    devices = open("/proc/self/net/dev").read().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]
"""


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def test_a_wrapped_checkpoint_becomes_its_tensors(tmp_path):
    """And a view of a larger tensor, or one under two names, is written as it is."""
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"module.a": whole, "module.tied": whole, "module.b": whole[:, :2]}
    state |= {"module.half": torch.ones(3, dtype=torch.bfloat16)}
    torch.save({"model": state, "epoch": 3, "optimizer": {"step": 1}}, tmp_path / "c.pth")
    told = biomass("weights", "convert", tmp_path / "c.pth", tmp_path / "c.safetensors")
    assert f"{tmp_path}/c.safetensors: 4 tensors, " in told.output
    assert "left out, for they are no weights:\n  epoch\n  optimizer\n" in told.output
    found = load_file(tmp_path / "c.safetensors")
    assert found.keys() == {"a", "tied", "b", "half"}
    assert all(torch.equal(found[name], state[f"module.{name}"]) for name in found)
    assert found["half"].dtype == torch.bfloat16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.pth", "c.safetensors"]


@pytest.mark.parametrize(
    "zipped",
    [pytest.param(True, id="zip"), pytest.param(False, id="legacy", marks=pytest.mark.system)],
)
def test_U11_code_in_a_checkpoint_is_refused_and_does_not_run(zipped, tmp_path):
    canary = tmp_path / "canary"
    path = tmp_path / "evil.pth"
    torch.save({"a": Canary(canary)}, path, _use_new_zipfile_serialization=zipped)
    told = biomass("weights", "convert", path, tmp_path / "o.safetensors", code=3)
    assert "refused, for it holds posix.system, which is neither a tensor nor" in told.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["evil.pth"]


def test_U11_the_process_that_reads_can_do_nothing_else(tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    command = [sys.executable, "-c", ATTEMPTS, str(out), str(other)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ended = dict(line.split() for line in done.stdout.splitlines())
    assert ended.pop("output") == ended.pop("read") == "done"
    assert ended.pop("memory") == "MemoryError"
    assert set(ended.values()) == {"Refused"} and len(ended) == 11
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


@pytest.mark.system
def test_U11_a_file_that_needs_more_memory_is_refused_with_the_option(tmp_path):
    torch.save({"a": torch.ones(1 << 24)}, tmp_path / "a.pth")  # 64 MiB
    command = "weights", "convert", tmp_path / "a.pth", tmp_path / "o.safetensors"
    told = biomass(*command, "--memory", 0.05, code=3)
    assert "more memory is needed than the 0.05 GB" in told.stderr
    assert "--memory sets another limit" in told.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["a.pth"]


def test_what_is_there_is_replaced_only_by_force(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    out = tmp_path / "a.safetensors"
    out.write_bytes(b"mine")
    convert = "weights", "convert", tmp_path / "a.pth"
    assert "--force to replace it" in biomass(*convert, out, code=3).stderr
    assert out.read_bytes() == b"mine"
    biomass(*convert, out, "--force")
    assert load_file(out)["a"].tolist() == [1, 1]
    assert "call it NAME.safetensors" in biomass(*convert, tmp_path / "a.pt", code=2).stderr


@pytest.mark.parametrize("version", ["2.5.1", "2.6.0", "2.9.1+cpu"])
def test_torch_before_its_repairs_is_refused_by_their_numbers(version):
    with pytest.raises(InputError, match="CVE-2025-32434 .* CVE-2026-24747"):
        check_torch(version)


@pytest.mark.parametrize("version", ["2.10.0", "2.14.1+cu130", "3.0"])
def test_later_torch_is_taken(version):
    check_torch(version)


@pytest.mark.parametrize(
    "checkpoint, names, left_out",
    [
        ({"w": 0}, ["w"], []),
        ({"state_dict": {"_orig_mod.w": 0}, "epoch": 1}, ["w"], ["epoch"]),
        ({"model": {"state_dict": {"w": 0}}}, ["w"], []),
        ({"state_dict": {"v": 0}, "model_ema": {"w": 0}}, ["w"], ["state_dict"]),
        ({"teacher": {"backbone.w": 0, "head.w": 0}}, ["w"], ["head.w"]),
        ({"w": 0, "n_steps": 5}, ["w"], ["n_steps"]),
    ],
    ids=["plain", "state_dict", "nested", "average first", "teacher", "with a number"],
)
def test_a_state_dict_is_found_in_what_wraps_it(checkpoint, names, left_out):
    def filled(value):
        if isinstance(value, dict):
            return {name: filled(each) for name, each in value.items()}
        return torch.ones(2) if value == 0 else value

    tensors, others = convert_child.unwrapped(filled(checkpoint))
    assert (list(tensors), others) == (names, left_out)


@pytest.mark.parametrize(
    "checkpoint", [[torch.ones(2)], {"epoch": 3}, {}], ids=["list", "numbers", "empty"]
)
def test_what_holds_no_state_dict_is_refused(checkpoint):
    with pytest.raises(convert_child.Refused, match="holds"):
        convert_child.unwrapped(checkpoint)


def test_a_pickle_that_torch_did_not_write_is_refused(tmp_path):
    file = io.BytesIO(pickle.dumps(Canary(tmp_path / "canary"), protocol=2))
    with pytest.raises(pickle.UnpicklingError) as caught:
        torch.load(file, weights_only=True)
    assert "refused, for " in convert_child._reason(caught.value, 1)
    assert not (tmp_path / "canary").exists()
