"""A bundle's prediction as an offline notebook makes it: in a child process with the bundle's wheel
for all of this project."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from featurestore.disk.threads import starting
from featurestore.errors import InputError

ABSENT = (
    "h5py",
    "zarr",
    "click",
    "sklearn",
    "scipy",
    "matplotlib",
    "google_crc32c",
    "tensorstore",
    "simplejpeg",
)
KEPT = ("LD_LIBRARY_PATH", "TMPDIR")
"""What torch may need to start; no HOME, no PATH, no PYTHONPATH."""

ROUNDING = (
    "OPENBLAS",
    "GOTO_",
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "BLIS_",
    "ONEDNN_",
    "DNNL_",
    "ATEN_",
    "NPY_",
    "VECLIB_",
)
"""How the names of variables begin that choose a kernel or a number of threads, and so the last
bits of a sum."""

CHILD = """\
import runpy, sys
wheel, absent = sys.argv[1], sys.argv[2].split(",")
def watch(event, args):
    if event.startswith("socket."):
        raise RuntimeError(f"{event} {args}: a bundle predicts without a network")
sys.addaudithook(watch)
sys.modules.update(dict.fromkeys(absent))  # whoever imports one of these gets ImportError
sys.path.insert(0, wheel)
sys.argv[1:3] = []
runpy.run_module("predictor", run_name="__main__", alter_sys=True)
"""


def rounding_variables() -> dict[str, str]:
    """The variables of this process that a child needs to compute the same bits: those of BLAS,
    OpenMP, NumPy and torch."""
    return {name: value for name, value in os.environ.items() if name.startswith(ROUNDING)}


def predict_bare(bundle: Path, *arguments: object) -> None:
    """Run `python -m predictor --bundle` with these arguments where ABSENT cannot be imported and
    any socket is an error.

    InputError unless it succeeds; what it says goes to stderr.
    """
    (wheel,) = (bundle / "wheel").glob("*.whl")
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment = kept | rounding_variables()
    with TemporaryDirectory(prefix=".biomass-", dir=bundle.absolute().parent) as unpacked:
        zipfile.ZipFile(wheel).extractall(unpacked)
        command = [
            sys.executable,
            "-IB",
            "-c",
            CHILD,
            unpacked,
            ",".join(ABSENT),
            "--bundle",
            bundle,
            *arguments,
        ]
        with starting():
            done = subprocess.run(
                [*map(str, command)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
    if done.returncode:
        raise InputError(
            f"{bundle}: predicting from it with {wheel.name} alone ended with exit code "
            f"{done.returncode}; "
            "the reason is above"
        )
