"""A bundle's prediction as an offline notebook makes it: in a child process with the bundle's wheel for all of this project."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from featurestore.errors import InputError

ABSENT = ("h5py", "zarr", "click", "sklearn", "scipy", "matplotlib", "google_crc32c", "tensorstore")
KEPT = ("LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TMPDIR")
"""What torch may need to start, and to round as it does here; no HOME, no PATH, no PYTHONPATH."""

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


def predict_bare(bundle: Path, *arguments: object) -> None:
    """Run `python -m predictor --bundle` with these arguments where ABSENT cannot be imported and any socket is an error.

    InputError unless it succeeds; what it says goes to stderr.
    """
    wheel, = (bundle / "wheel").glob("*.whl")
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    with TemporaryDirectory(prefix=".biomass-", dir=bundle.absolute().parent) as unpacked:
        zipfile.ZipFile(wheel).extractall(unpacked)
        command = [sys.executable, "-IB", "-c", CHILD, unpacked, ",".join(ABSENT), "--bundle", bundle, *arguments]
        done = subprocess.run([*map(str, command)], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise InputError(f"{bundle}: predicting from it with {wheel.name} alone ended with exit code {done.returncode}; "
                         "the reason is above")
