"""Whether Python and the packages are those that this program needs, and whether torch loads."""

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from featurestore.about import DISTRIBUTION
from featurestore.checks import FAIL, OK, WARN, Check
from featurestore.disk.refusals import NO_TEMPORARY, SET_TMPDIR
from featurestore.disk.threads import check_thread
from featurestore.errors import BiomassError

HEIF_PACKAGE = "pillow-heif"
LOAD_SECONDS = 300  # torch from a cold network disk takes minutes


TOGETHER = "install both in one run: pip install --upgrade torch torchvision"


LOAD = """
import json, warnings, torch, torchvision
from torchvision.transforms.v2 import functional
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
devices = [torch.cuda.get_device_properties(i) for i in range(n)]
sizes = [f"{each.name}, {each.total_memory / 1e9:.0f} GB" for each in devices]
said = [str(each.message) for each in said]
print(json.dumps({"cuda": torch.version.cuda, "said": said, "devices": sizes}))
"""


def check_packages() -> Iterator[Check]:
    """Python and every package that our own metadata names, against the versions it allows."""
    try:
        from packaging.specifiers import SpecifierSet

        allowed = metadata.metadata(DISTRIBUTION)["Requires-Python"] or ""
        needed = requirements(DISTRIBUTION)
    except ModuleNotFoundError as err:
        # also of importlib.metadata, for a package that is not installed
        yield Check(
            "packages",
            WARN,
            f"not compared with what is needed: {err.name} is not installed",
            "pip install . in the project's folder",
        )
        return
    yield check_version(
        "Python",
        platform.python_version(),
        SpecifierSet(allowed),
        f"use Python {allowed}",
    )
    for each in needed:
        yield check_version(
            each.name,
            version(each.name),
            each.specifier,
            f"pip install '{each.name}{each.specifier}'",
        )


def check_version(name: str, found: str | None, allowed: Any, advice: str) -> Check:
    """allowed : packaging's SpecifierSet; found : None where there is none."""
    needed = f"{allowed or 'any version'} is needed"
    if found is None:
        return Check(name, FAIL, f"not installed, {needed}", advice)
    if not allowed.contains(found, prereleases=True):
        return Check(name, FAIL, f"{found}, {needed}", advice)
    return Check(name, OK, f"{found} ({needed})")


def check_heic() -> Check:
    """Whether HEIC photographs can be read, which needs a package of the extra `heif`."""
    found = version(HEIF_PACKAGE)
    if found:
        return Check(HEIF_PACKAGE, OK, f"{found}, HEIC photographs are read")
    return Check(
        HEIF_PACKAGE,
        OK,
        "not installed, HEIC photographs are not read",
        f"pip install {HEIF_PACKAGE} if there are some",
    )


def check_pair() -> Check:
    """Whether torch is the one that torchvision's metadata requires.

    Neither is imported: a wrong pair may crash.
    """
    try:
        needed = [each for each in requirements("torchvision") if each.name == "torch"]
    except ModuleNotFoundError as err:
        return Check("torch pair", WARN, f"not compared: {err.name} is not installed", TOGETHER)
    found = version("torch") or "0"
    bad = [each for each in needed if not each.specifier.contains(found, prereleases=True)]
    pair = (
        f"torchvision {version('torchvision')} needs "
        f"torch{', '.join(str(each.specifier) for each in bad or needed)}"
    )
    return Check(
        "torch pair",
        FAIL if bad else OK,
        f"{pair}, found {version('torch')}",
        TOGETHER if bad else "",
    )


def requirements(name: str) -> list[Any]:
    """packaging's Requirements of an installed package, without extras.

    ModuleNotFoundError if there is no such package.
    """
    from packaging.requirements import Requirement

    found = [Requirement(text) for text in metadata.requires(name) or []]
    no_extra = {"extra": ""}
    return [each for each in found if each.marker is None or each.marker.evaluate(no_extra)]


def version(name: str) -> str | None:
    """The installed version; None without a package, or without whole metadata.

    pip may have been killed before it wrote that.
    """
    try:
        return metadata.version(name)
    except (metadata.PackageNotFoundError, KeyError):
        return None


def check_temporary() -> Check:
    """Whether there is a folder for temporary files, without which torch does not load."""
    try:
        return Check("temporary files", OK, tempfile.gettempdir())
    except FileNotFoundError as err:
        return Check("temporary files", FAIL, str(err.strerror), SET_TMPDIR)


def check_starting() -> Check:
    """Whether this process may start a thread at all."""
    try:
        check_thread()
    except BiomassError as err:
        return Check("threads", FAIL, str(err))
    return Check("threads", OK, "can be started")


def check_loading() -> Iterator[Check]:
    """Whether torchvision truly loads, and what CUDA shows.

    Another process tells, because a bad library may take it down.
    """
    try:  # -P: a torch.py in the current folder is not what `biomass` would import
        done = subprocess.run(
            [sys.executable, "-P", "-c", LOAD],
            capture_output=True,
            text=True,
            timeout=LOAD_SECONDS,
        )
    except subprocess.TimeoutExpired:
        yield Check(
            "torch loads",
            FAIL,
            f"not within {LOAD_SECONDS} s",
            "move the environment to a faster disk",
        )
        return
    except OSError as err:
        yield Check(
            "torch loads",
            FAIL,
            f"not tried, no process can be started: {err.strerror}",
            "raise `ulimit -u`",
        )
        return
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        signal = f"signal {-done.returncode}: " if done.returncode < 0 else ""
        advice = SET_TMPDIR if NO_TEMPORARY in said[-1] else TOGETHER
        yield Check(
            "torch loads",
            FAIL,
            f"torch and torchvision do not: {signal}{said[-1]}",
            advice,
        )
        return
    yield Check("torch loads", OK, "torch and torchvision do")
    told = json.loads(done.stdout.splitlines()[-1])
    has_driver = Path("/dev/nvidiactl").exists()
    yield check_cuda(told, has_driver)


def check_cuda(torch: dict[str, Any], has_driver: bool) -> Check:
    """What torch says of CUDA.

    torch : cuda (the version it is built for, or None), devices, and said, its warnings.
    has_driver : whether NVIDIA's is there.
    """
    if torch["devices"]:
        return Check(
            "CUDA", OK, "; ".join(f"cuda:{i} {name}" for i, name in enumerate(torch["devices"]))
        )
    if not has_driver:
        return Check("CUDA", OK, "no device: everything runs on the CPU")
    why = (
        f"this torch is built for CUDA {torch['cuda']}"
        if torch["cuda"]
        else "this torch is built without CUDA"
    )
    said = "".join(f": {' '.join(text.split())}" for text in torch["said"])
    return Check(
        "CUDA",
        WARN,
        f"there is an NVIDIA driver, torch sees no device; {why}{said}",
        "look at nvidia-smi and CUDA_VISIBLE_DEVICES, and install a torch for that driver "
        "(pytorch.org)",
    )
