"""`store build --out s3://...`: the objects are the files of a local build, by parts that are put."""

import os
from pathlib import Path
from types import SimpleNamespace

import parts_child
import pytest
from commands import TINY, biomass
from conftest import tiny_rows, tiny_spec
from test_parts import Engine
from test_publish import files

from featurestore import open_writer
from featurestore.engines import local
from featurestore.errors import InputError
from featurestore.parts import build, devices
from featurestore.parts.publish import is_published

OPTIONS = ["--views", "plain,hsv", *TINY]


@pytest.fixture
def here(bucket, memory_path, monkeypatch) -> Path:
    """The folder that the command is typed in."""
    monkeypatch.setattr("featurestore.format.zarr.SHARD_BYTES", 35_000)  # two images
    monkeypatch.chdir(memory_path)
    return memory_path


@pytest.fixture
def engine(monkeypatch) -> Engine:
    """In place of processes: parts are built here, one after another."""
    engine = Engine()
    monkeypatch.setattr(local, "run", engine)
    return engine


def store_build(data: Path, out: Path | str, *options: object, code: int = 0) -> str:
    words = ["store", "build", "--data", data, "--out", out, *OPTIONS, *options]
    return biomass(*words, code=code).output


@pytest.fixture
def tiny(here, monkeypatch) -> SimpleNamespace:
    """Builds are prepared without photographs, and rows made without a backbone."""
    monkeypatch.setattr("featurestore.format.zarr.SHARD_BYTES", 25_000)
    monkeypatch.setattr(build, "_build", parts_child.put_rows)
    monkeypatch.setattr(build, "plan_backbone", lambda _plan, _device: None)
    return parts_child.prepare_tiny(here, monkeypatch)


def test_a_build_goes_on_to_the_files_of_a_local_one_and_leaves_nothing(
    bucket, here, engine, tiny, monkeypatch
):
    with open_writer(here / "near.zarr", tiny.spec, tiny.frame) as writer:
        for image in writer.pending():
            writer.put(image, tiny_rows(tiny.spec, image))
    there = sorted(path.name for path in here.iterdir())
    build_part = build.build_part

    def fails(folder, part, *given, **options):
        if part == 1:
            raise InputError("stopped")
        return build_part(folder, part, *given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(build, "build_part", fails)
        assert "stopped" in store_build("data", bucket.url, "--device", "cpu,cpu", code=3)
    assert {each.name for each in here.iterdir()} == {*there, "features.zarr.parts"}
    said = store_build("data", bucket.url, "--device", "cpu,cpu")
    assert f"{bucket.url}: 5 images sealed, 3 of them now" in said
    assert [name for name, _ in engine.done] == ["part 0", "part 1", "part 2"]
    assert bucket.keys(bucket.url) == files(here / "near.zarr")
    assert sorted(path.name for path in here.iterdir()) == there

    said = store_build("data", bucket.url)
    assert f"{bucket.url}: 5 images sealed, 0 of them now" in said and len(engine.done) == 3
    tiny.spec = tiny_spec(tiny.frame, seed=1)
    assert "seed: store 0, asked 1" in store_build("data", bucket.url, code=5)
    tiny.spec, tiny.frame = tiny_spec(tiny.frame), tiny.frame.iloc[:4]
    assert "holds other photographs" in store_build("data", bucket.url, code=5)
    assert sorted(path.name for path in here.iterdir()) == there


def test_yaml_from_a_pipe_is_read_once(bucket, here, engine, tiny):
    there, other_end = os.pipe()
    os.write(other_end, f"data: data\nout: {bucket.url}\n".encode())
    os.close(other_end)
    biomass("store", "build", "--config", f"/dev/fd/{there}", *OPTIONS)
    os.close(there)
    assert is_published(bucket.url)


@pytest.mark.system
def test_objects_are_the_files_of_a_local_build(bucket, here, engine, pasture, monkeypatch):
    store_build(pasture, here / "near.zarr")
    there = sorted(path.name for path in here.iterdir())

    # stopped once when it would have sealed, and started again
    with monkeypatch.context() as patch:

        def stopped(*_arguments, **_options):
            raise InputError("stopped")

        patch.setattr(devices, "publish_parts", stopped)
        store_build(pasture, bucket.url, "--device", "cpu,cpu", code=3)
    assert [name for name, _ in engine.done] == ["part 0", "part 1", "part 2"]
    assert not is_published(bucket.url)
    said = store_build(pasture, bucket.url, "--device", "cpu,cpu")
    assert f"{bucket.url}: 6 images sealed, 0 of them now" in said
    assert f"biomass train --config first.yaml --store {bucket.url}" in said
    assert len(engine.done) == 3
    assert bucket.keys(bucket.url) == files(here / "near.zarr")
    assert sorted(path.name for path in here.iterdir()) == there, "nothing is left"

    said = store_build(pasture, bucket.url)
    assert f"{bucket.url}: 6 images sealed, 0 of them now" in said and len(engine.done) == 3
    said = store_build(pasture, bucket.url, "--seed", 1, code=5)
    assert "holds other tokens" in said and "seed: store 0, asked 1" in said
    assert sorted(path.name for path in here.iterdir()) == there


@pytest.mark.system
def test_one_device_puts_parts_too_where_yaml_says(bucket, here, engine, pasture, monkeypatch):
    monkeypatch.setattr(build, "put_part", put_and_tell(said := []))
    (here / "build.yaml").write_text(f"data: {pasture}\nout: {bucket.url}\n")
    (here / "fast").mkdir()
    words = ["--config", here / "build.yaml", *OPTIONS, "--parts", 2, "--scratch", here / "fast"]
    biomass("store", "build", *words)
    assert [name for name, _ in engine.done] == ["part 0", "part 1"]
    assert {place.parent.parent.parent for place in said} == {here / "fast"}
    assert not list((here / "fast").iterdir())
    assert is_published(bucket.url)


def put_and_tell(places: list[Path]):
    put_part = build.put_part

    def put(plan, part, attempt):
        places.append(attempt)
        return put_part(plan, part, attempt)

    return put


@pytest.mark.system
def test_a_pooled_store_has_nothing_to_put_before_it_is_sealed(bucket, here, engine, pasture):
    pooled = ["--tokens", "pooled"]
    store_build(pasture, here / "near.zarr", *pooled)
    store_build(pasture, bucket.url, *pooled, "--parts", 2)
    assert bucket.keys(bucket.url) == files(here / "near.zarr")


@pytest.mark.system
def test_a_plan_is_printed_for_the_url(bucket, here, pasture):
    said = store_build(pasture, bucket.url, "--plan")
    assert f"{bucket.url}: 6 images of 2 sites, 6 to build; nothing was written" in said
    assert "in object storage; parts that are being built take room here" in said
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "options, code, message",
    [
        (["--reserve", 2], 2, "--reserve: nothing is added to a store in object storage"),
        (["--out", "s3://pasture/f.h5"], 3, "ends in .zarr"),
        (["--out", "http://a/f.zarr"], 3, "only read from"),
        (["--out", "f.zarr", "--scratch", "."], 2, "--scratch goes with a URL"),
        (["--out", "f.zarr", "--parts", 2], 2, "--parts goes with --engine or a URL"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_cannot_be_meant_is_refused(bucket, here, pasture, options, code, message):
    assert message in store_build(pasture, bucket.url, *options, code=code)


def test_O11_a_url_with_other_objects_is_refused_before_anything_is_built(bucket, here, pasture):
    bucket.put(bucket.url, "notes.txt", b"mine")
    assert "objects of something else" in store_build(pasture, bucket.url, code=5)
    assert set(bucket.keys(bucket.url)) == {"notes.txt", "catalog/zarr.json"}
