"""A checkpoint that torch saved becomes a safetensors file: the one place that reads a pickle.

The reading itself is done by a child process, see `convert_child.py`.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from featurestore.disk.durable import appears_whole
from featurestore.disk.threads import starting
from featurestore.errors import InputError, UsageError

NEEDED = 2, 10  # of torch
START = "from featurestore.backbone.convert_child import main; main()"
GIB = 1 << 30


@dataclass(frozen=True)
class Converted:
    """What was written, and how the child was confined."""

    n_tensors: int
    n_bytes: int
    left_out: tuple[str, ...]
    """Entries of the checkpoint that are no weights, as an optimizer's state."""
    memory_bytes: int
    without_network: bool
    """Whether the kernel gave the child an empty network namespace."""


def convert(
    source: Path,
    out: Path,
    *,
    memory_bytes: int | None = None,
    force: bool = False,
) -> Converted:
    """Write the tensors of a torch checkpoint as a safetensors file, under the names they have.

    A checkpoint that wraps a state dict is unwrapped as timm does. OUT appears whole or not at all.

    memory_bytes : that the child may take beyond the libraries it loads. None is four times the
        file, and at least 2 GiB.
    force : replace `out` if it is there.

    Raises InputError if torch is too old for it, if the file is no such checkpoint, or holds
    anything else than tensors and plain values; UsageError if `out` cannot be meant.
    """
    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: the output is a safetensors file; call it NAME.safetensors")
    if out.exists() and (not force or out.samefile(source)):
        raise InputError(f"{out}: exists; choose another name, or --force to replace it")
    if not source.is_file():
        raise InputError(f"{source}: no such file")
    try:
        check_torch(version("torch"))  # from its metadata: importing torch here takes seconds
    except PackageNotFoundError as err:
        raise InputError("torch is not installed") from err

    memory_bytes = memory_bytes or max(2 * GIB, 4 * source.stat().st_size)
    try:
        with appears_whole(out) as partial:
            told = _in_child(source, partial, memory_bytes)
            n_bytes = partial.stat().st_size
    except OSError as err:
        raise InputError(f"{out}: cannot be written ({err.strerror}); choose another") from err
    return Converted(
        told["n_tensors"],
        n_bytes,
        tuple(told["left_out"]),
        memory_bytes,
        told["without_network"],
    )


def check_torch(torch_version: str) -> None:
    """InputError where this torch's weights_only does not keep a pickle from running code."""
    numbers = [int(number) for number in re.findall(r"\d+", torch_version)[:2]]
    if tuple(numbers) < NEEDED:
        raise InputError(
            f"torch {torch_version} cannot read such files safely: by CVE-2025-32434 (before "
            "2.6) and CVE-2026-24747 (before 2.10) a prepared file runs code in spite of "
            "weights_only=True; install torch 2.10 or newer, or convert on a machine that has it"
        )


def _in_child(source: Path, partial: Path, memory_bytes: int) -> dict:
    """What the child tells, once it has written `partial`."""
    # -P: the folder where this was started is not searched for packages
    arguments = [str(source), str(partial), str(memory_bytes)]
    command = [sys.executable, "-P", "-c", START, *arguments]
    with starting():
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    try:
        # the last line: libraries may have printed before it
        told = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise InputError(
            f"{source}: not converted, the process that read it ended with code "
            f"{done.returncode} ({''.join(last) or 'it said nothing'}); it may take "
            f"{memory_bytes / 1e9:.3g} GB, --memory sets another limit"
        ) from None
    if "error" in told:
        raise InputError(f"{source}: {told['error']}")
    return told
