"""Object storage as servers of their own offer it on loopback: SeaweedFS for S3, Azurite for Azure.

Azurite comes from npm, which Debian has.
"""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from azurite import azurite, installed
from commands import biomass
from conftest import write_tiny
from seaweed import BUCKET, seaweed
from test_publish import files, race

from featurestore import FeatureStore
from featurestore.errors import MismatchError, StoreDamaged
from featurestore.manage.publish import Publisher

pytestmark = pytest.mark.system


@pytest.fixture(scope="module", params=["s3", "az"])
def server(request, tmp_path_factory, pytestconfig):
    """The scheme of a server's URLs, and the environment it is read by."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "s3":
        with seaweed(folder) as environment:
            yield "s3", environment
        return
    if not shutil.which("npm"):
        pytest.skip("npm not installed: apt-get install npm")
    program = installed(pytestconfig.cache.mkdir("azurite"))
    with azurite(program, folder, BUCKET) as environment:
        yield "az", environment


@pytest.fixture
def url(server, tmp_path, monkeypatch) -> str:
    scheme, environment = server
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BIOMASS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("featurestore.format.zarr.SHARD_BYTES", 25_000)  # two images
    return f"{scheme}://{BUCKET}/{tmp_path.name}/features.zarr"


@pytest.fixture
def folder(url, tmp_path):
    write_tiny(tmp_path / "features.zarr")
    return tmp_path / "features.zarr"


def objects(url: str) -> dict[str, bytes]:
    import obstore

    store = obstore.store.from_url(url, client_options={"allow_http": True})
    keys = [each["path"] for batch in obstore.list(store) for each in batch]
    return {key: bytes(obstore.get(store, key).bytes()) for key in keys}


def test_a_published_store_is_the_local_one(url, folder):
    biomass("store", "convert", folder, url)
    assert objects(url) == files(folder)
    assert "0 of them copied" in biomass("store", "convert", folder, url).stdout
    assert "all as committed" in biomass("store", "verify", url).output
    with FeatureStore.open(url) as store, FeatureStore.open(folder) as local:
        assert np.array_equal(store.patches[:], local.patches[:])
        assert store.catalog.equals(local.catalog)
    assert biomass("store", "diff", url, folder).output == "no difference\n"


def test_what_is_not_there_is_said(url, folder, server):
    scheme, environment = server
    assert "no store there, or not all of one" in biomass("store", "info", url, code=3).output
    other = url.replace(f"{scheme}://{BUCKET}", f"{scheme}://nobodys")
    said = biomass("store", "convert", folder, other, code=3).output
    assert "not found (NoSuchBucket)" in said or "not found (ContainerNotFound)" in said


def test_another_key_is_refused_by_azure(url, folder, server, monkeypatch):
    if server[0] != "az":
        pytest.skip("SeaweedFS is asked without a key here")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "bm90IHRoZSBrZXkgb2YgdGhpcyBhY2NvdW50")
    for arguments in (["info", url], ["convert", folder, url]):
        said = biomass("store", *arguments, code=3).output
        assert "no access (AuthorizationFailure" in said and "AZURE_STORAGE_ACCOUNT_KEY" in said
        assert "bm90IHRo" not in said


def test_O10_racing_runs_end_with_one_store(url, folder):
    n_put = race(url, folder, folder, folder)
    assert objects(url) == files(folder)
    assert sum(n_put) == len(files(folder)) - 1


def test_O12_runs_that_are_killed_are_completed(url, folder):
    code = "import sys; from cli import main; main()"
    for _ in range(3):
        run = subprocess.Popen([sys.executable, "-c", code, "store", "convert", folder, url])
        try:
            run.wait(2.5)
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
    Publisher(url).publish(folder)
    assert objects(url) == files(folder)


def test_O03_a_store_that_is_replaced_is_never_read_in_part(url, folder, tmp_path):
    import obstore

    Publisher(url).publish(folder)
    with FeatureStore.open(url) as store:
        store.patches[0, 0]
        there = obstore.store.from_url(url, client_options={"allow_http": True})
        for key in objects(url):
            obstore.delete(there, key)
        write_tiny(tmp_path / "other.zarr", n=4)
        Publisher(url).publish(tmp_path / "other.zarr")
        with pytest.raises((MismatchError, StoreDamaged)):
            store.patches[4, 2]
        with pytest.raises(MismatchError, match="replaced"):
            store.refresh()


def test_O05_processes_fetch_each_row_once(url, folder):
    Publisher(url).publish(folder)
    code = (
        "import sys; from featurestore import FeatureStore; s = FeatureStore.open(sys.argv[1]); "
        "print(s.layout.path.name, s.patches[:].sum(dtype='f8'))"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    told = {run.communicate()[0] for run in runs}
    with FeatureStore.open(folder) as local, FeatureStore.open(url) as store:
        assert told == {f"{store.layout.path.name} {local.patches[:].sum(dtype='f8')}\n"}
        assert store.will_need([(i, v) for i in range(5) for v in range(3)]) == 0
