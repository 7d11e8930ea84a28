"""Programs that nobody here wrote read a store's bytes: HDF5's and netCDF's own tools, and two
JavaScript clients under node.

Those in Python are in test_format.py. From Debian: hdf5-tools, netcdf-bin, npm; from npm: what
clients/package-lock.json pins.
"""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from stored import KINDS, write_kind

pytestmark = [pytest.mark.system, pytest.mark.parametrize("kind", KINDS)]
CLIENTS = Path(__file__).parent / "clients"
DIMS = {
    "cls": ["image", "view", "tile", "channel"],
    "patches": ["image", "view", "tile", "patch", "channel"],
    "pooled": ["image", "view", "tile", "pooling", "channel"],
    "stats": ["image", "view", "stat"],
    "thumbs": ["image", "thumb_row", "thumb_column", "colour"],
    "crc32c": ["image", "view"],
    "seal": ["image"],
    "catalog/State": ["image", "State~byte"],
    "catalog/N~2fha~20~c3~a9": ["image"],
}
in_hdf5 = pytest.mark.parametrize("store_path", ["h5"], indirect=True)
in_zarr = pytest.mark.parametrize("store_path", ["zarr"], indirect=True)


def needs(package: str, *tools: str):
    missing = [tool for tool in tools if not shutil.which(tool)]
    return pytest.mark.skipif(
        bool(missing), reason=f"{', '.join(missing)} not installed: apt-get install {package}"
    )


def output(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@in_hdf5
@needs("hdf5-tools", "h5dump")
def test_h5dump_writes_the_bytes_of_every_dataset(store_path, kind, tmp_path):
    held = write_kind(store_path, kind)
    # as in the file, little-endian: for `-b LE`, h5dump 1.10 writes nothing of 16-bit floats
    for name in held:
        output(
            "h5dump", "-d", name, "-b", "FILE", "-o", tmp_path / name.replace("/", "-"), store_path
        )
    assert [
        name
        for name in held
        if (tmp_path / name.replace("/", "-")).read_bytes() != held[name].tobytes()
    ] == []


@in_hdf5
@needs("hdf5-tools", "h5dump", "h5ls", "h5stat")
def test_hdf5_tools_name_the_dimensions(store_path, kind):
    held = write_kind(store_path, kind)
    listed = dict(re.findall(r"^/(\S+) +Dataset \{(.*)\}$", output("h5ls", "-r", store_path), re.M))
    for name in held.keys() & DIMS.keys():
        labels = re.findall(
            r'"([a-zA-Z_~]+)"',
            output("h5dump", "-a", f"{name}/DIMENSION_LABELS", store_path).split("DATA {")[1],
        )
        assert labels == DIMS[name]
        assert (
            listed[name].split(", ")
            == [listed[dim] for dim in labels]
            == [str(size) for size in held[name].shape]
        )
    assert "# of unique groups: 2\n" in output("h5stat", store_path)


@in_hdf5
@needs("netcdf-bin", "ncdump")
def test_ncdump_prints_every_value(store_path, kind):
    """The C library of netCDF knows no 16-bit floats and shows them as 32-bit ones, which loses
    nothing."""
    held = write_kind(store_path, kind)
    text = output("ncdump", "-p", "9,17", store_path)
    found = dict(
        re.findall(r"^ +(\S+) =\s([^;\"]*) ;$", "data:".join(text.split("data:")[1:]), re.M)
    )
    found = {
        name.replace("\\", ""): [float(cell) for cell in cells.split(",")]
        for name, cells in found.items()
    }
    values = {
        name: np.array(found[name.split("/")[-1]]).astype(array.dtype)
        for name, array in held.items()
    }
    assert [name for name, array in held.items() if values[name].tobytes() != array.tobytes()] == []


@pytest.fixture(scope="session")
def run_in_node(pytestconfig):
    """A function (script of clients/, store, array names) -> attributes, arrays: sha256, shape and
    dims of each.

    Packages are installed once, in pytest's cache; node is one of them, since Debian's has no
    Float16Array.
    """
    folder = pytestconfig.cache.mkdir("clients")
    lock = (CLIENTS / "package-lock.json").read_bytes()
    done = folder / "node_modules/.package-lock.json"  # npm writes it last
    is_installed = done.exists() and (folder / "package-lock.json").read_bytes() == lock
    shutil.copytree(CLIENTS, folder, dirs_exist_ok=True)
    if not is_installed:
        output("npm", "ci", "--prefix", folder, "--ignore-scripts", "--no-audit", "--no-fund")
    (node,) = folder.glob("node_modules/node-linux-*/bin/node")

    def run(script: str, path: Path, names) -> tuple[dict, dict]:
        printed = json.loads(output(node, folder / script, path, *names))
        return printed["attributes"], printed["arrays"]

    return run


@needs("npm", "npm")
@pytest.mark.parametrize(
    ("store_path", "script"),
    [("zarr", "zarrita.mjs"), ("h5", "h5wasm.mjs")],
    indirect=["store_path"],
)
def test_javascript_clients_read_every_array(run_in_node, store_path, script, kind):
    """Zarrita checks no CRC: patches of an image not built yet are zeros to it, so that only the
    seal tells."""
    held = write_kind(store_path, kind)
    attributes, arrays = run_in_node(script, store_path, held)
    assert (attributes["format"], attributes["format_version"]) == ("biomass-feature-store", 1)
    assert json.loads(attributes["spec"])["has_patches"] == ("patches" in held)
    assert [
        n
        for n, array in held.items()
        if arrays[n]["sha256"] != hashlib.sha256(array.tobytes()).hexdigest()
    ] == []
    assert [n for n, array in held.items() if arrays[n]["shape"] != list(array.shape)] == []
    assert {n: arrays[n]["dims"] for n in arrays.keys() & DIMS.keys()} == {
        n: DIMS[n] for n in arrays.keys() & DIMS.keys()
    }
