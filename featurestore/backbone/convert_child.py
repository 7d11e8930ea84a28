"""The child process of `biomass weights convert`, which alone reads pickles.

It gives up the network, limits its memory, and refuses what no checkpoint needs; only then it
reads the file, by `torch.load(weights_only=True)`. docs/weights.md says what each of these holds
back.
"""

import ctypes
import json
import os
import re
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # of unshare(2)

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
ON_THE_OUTPUT = "open", "os.chmod", "os.utime"  # events that writing our own file raises
REFUSED = (
    "socket.",
    "subprocess.",
    "pty.",
    "ctypes.",
    "shutil.",
    "sqlite3.",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.kill",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.utime",
    "os.chmod",
    "os.chown",
    "os.setxattr",
    "os.removexattr",
)
"""How audit events begin that no reading of a checkpoint raises. Source: Python's table of audit
events."""

WRAPPERS = "state_dict_ema", "model_ema", "state_dict", "model", "module", "teacher"
"""Where checkpoints keep the state dict; the first ones as timm looks for them."""

PREFIXES = "module.", "_orig_mod."
TOWER = "backbone."  # where a model was trained with other parts around it


class Refused(Exception):
    """Why a file is not converted."""


def main() -> None:
    """Convert one file, and print a line of JSON: what was written, or the error."""
    source = sys.argv[1]
    partial = Path(sys.argv[2])
    memory_bytes = int(sys.argv[3])
    without_network = leave_network()
    try:
        told = _convert(source, partial, memory_bytes)
        told["without_network"] = without_network
    except Refused as err:
        told = {"error": str(err)}
    print(json.dumps(told))


def _convert(source: str, partial: Path, memory_bytes: int) -> dict[str, Any]:
    import torch

    from featurestore.backbone.convert import check_torch
    from featurestore.disk.tensor_file import save_tensors
    from featurestore.errors import InputError

    try:
        check_torch(torch.__version__)
    except InputError as err:
        raise Refused(str(err)) from err
    _load_what_is_needed()
    torch.set_num_threads(1)
    limit_memory(memory_bytes)
    confine(partial)
    try:
        checkpoint = torch.load(source, map_location="cpu", weights_only=True)
        tensors, left_out = unwrapped(checkpoint)
        save_tensors(_separate(tensors), partial, {"format": "pt"})
    except Refused:
        raise
    except Exception as err:  # of whatever kind: it comes from a file that nobody vouches for
        raise Refused(_reason(err, memory_bytes)) from err
    return {"n_tensors": len(tensors), "left_out": left_out}


def leave_network() -> bool:
    """Go into an empty network namespace; whether the kernel allows it.

    Before any thread is started: a user namespace takes processes of one thread.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # root keeps its rights by the first
    return libc.unshare(CLONE_NEWNET) == 0 or libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0


def limit_memory(n_bytes: int) -> None:
    """Let this process take so much address space beyond what it has, and write no larger file."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + n_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def confine(output: Path) -> None:
    """Refuse sockets, processes and writing anything but the output, from here to the end."""
    # an event gives a path as its caller spelled it
    allowed = {os.fspath(output), os.fspath(output).encode(), output}

    def refuse(event: str, arguments: tuple) -> None:
        if event in ON_THE_OUTPUT and arguments[0] in allowed:
            return
        if event == "open":
            if not arguments[2] & WRITING:  # (path, mode, flags)
                return
            raise Refused(f"refused: reading it tried to write {arguments[0]!r}")
        if event.startswith(REFUSED):
            raise Refused(f"refused: reading it tried {event}{arguments!r:.200}")

    sys.addaudithook(refuse)  # which nothing in Python can take away again


def _load_what_is_needed() -> None:
    """Go through reading and writing once, since both load modules when they are first used."""
    import io

    import torch
    from safetensors.torch import save

    file = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, file)
    file.seek(0)
    save(torch.load(file, weights_only=True))


def unwrapped(checkpoint: Any) -> tuple[dict[str, Any], list[str]]:
    """The state dict of a checkpoint, and the names of entries that are not in it."""
    import torch

    left_out: list[str] = []
    for _ in WRAPPERS:  # one may lie in another, but a dict that holds itself must end too
        if not isinstance(checkpoint, Mapping):
            break
        inner = [name for name in WRAPPERS if isinstance(checkpoint.get(name), Mapping)]
        if not inner:
            break
        left_out += [str(name) for name in checkpoint if name != inner[0]]
        checkpoint = checkpoint[inner[0]]
    if not isinstance(checkpoint, Mapping):
        raise Refused(f"holds a {type(checkpoint).__name__}, where a dict of tensors is needed")

    tensors: dict[str, Any] = {}
    for name, value in checkpoint.items():
        name = str(name)
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        if isinstance(value, torch.Tensor):
            tensors[name] = value.detach()
        else:
            left_out.append(name)
    if any(name.startswith(TOWER) for name in tensors):
        left_out += [name for name in tensors if not name.startswith(TOWER)]
        tensors = {
            name.removeprefix(TOWER): tensor
            for name, tensor in tensors.items()
            if name.startswith(TOWER)
        }
    if not tensors:
        raise Refused("holds no tensors")
    return tensors, left_out


def _separate(tensors: dict[str, Any]) -> dict[str, Any]:
    """Tensors none of which shares its memory with another or is a part of one.

    safetensors writes no others.
    """
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        separate[name] = tensor if alone else tensor.clone()
    return separate


def _reason(err: Exception, memory_bytes: int) -> str:
    """Why torch does not read the file."""
    text = str(err)
    # torch's allocator raises a RuntimeError that it "can't allocate memory"
    if isinstance(err, MemoryError) or "alloc" in text:
        return (
            f"more memory is needed than the {memory_bytes / 1e9:.3g} GB that reading may take; "
            "--memory sets another limit"
        )
    if named := re.search(r"GLOBAL ([\w.]+)", text):
        return (
            f"refused, for it holds {named[1]}, which is neither a tensor nor a plain value; "
            "nothing of it was run. Where you trust who made it, load it there and save "
            "model.state_dict() alone"
        )
    if refused := re.search(r"WeightsUnpickler error:\s*(.*)", text):
        return (
            "refused, for torch.load(weights_only=True) does not take what it holds "
            f"({refused[1][:200]}); nothing of it was run. Give a file that torch.save wrote"
        )
    first = text.strip().splitlines()[:1]
    return (
        f"torch cannot read it ({''.join(first)[:120] or type(err).__name__}); copy it again, or "
        "give a file that torch.save wrote"
    )
