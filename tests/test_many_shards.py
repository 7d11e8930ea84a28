"""A Zarr store of more shards than a process may have open: read, trained on, verified, copied."""

import json
import os
import resource
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_frame, tiny_rows, tiny_spec, write_tiny
from sweeps import write_store

from featurestore import FeatureStore, open_writer
from featurestore.commands.running import one_line_errors
from featurestore.disk import maps
from featurestore.errors import InputError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def one_a_shard(monkeypatch):
    monkeypatch.setattr("featurestore.format.zarr.SHARD_BYTES", 1)


@pytest.fixture
def few_maps(monkeypatch):
    """Three maps at most, and no limit that could be raised."""
    monkeypatch.setattr("featurestore.disk.maps.most_maps", lambda: 3)
    monkeypatch.setattr("featurestore.disk.maps.raise_file_limit", lambda: False)


@pytest.fixture
def few_files(monkeypatch):
    """Room for 80 descriptors beside those that other tests left open, which is not raised."""
    monkeypatch.setattr("featurestore.disk.maps.raise_file_limit", lambda: False)
    monkeypatch.setattr("featurestore.disk.maps._file_limits", lambda: (80, 80))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 80, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def limited(n_files: int, script: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run Python in a child that may open so many files, and may not raise that."""
    command = [
        "sh",
        "-c",
        f'ulimit -n {n_files} && exec "$@"',
        "sh",
        sys.executable,
        "-c",
        script,
        *map(str, arguments),
    ]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )


USE = """
import sys
from pathlib import Path
import featurestore.format.zarr, numpy as np
featurestore.format.zarr.SHARD_BYTES = 1
from conftest import tiny_rows
from featurestore import FeatureStore
from trainer import MixupBatches
path, n = Path(sys.argv[1]), int(sys.argv[2])
store = FeatureStore.open(path)
assert len(store.layout.extents["patches"].paths) == n
for image in range(n):
    assert np.array_equal(store.patches[image], tiny_rows(store.spec, image).patches_VTPD)
rows = [(image, 1) for image in range(n)]
assert len(store.take(rows)) == n
store.will_need(rows)
assert store.verify()
store.check_rows(rows)
batches = MixupBatches(store, batch_size=25, targets=["Dry_Total_g"])
assert sum(len(batch.images) for batch in batches) == n // 25 * 25
with open("/dev/null"):  # there is room for others
    print("read")
"""


@pytest.mark.parametrize(
    "n, n_files", [(150, 110), pytest.param(1100, 1024, marks=pytest.mark.system)]
)
def test_K11_more_shards_than_descriptors_are_read(tmp_path, one_a_shard, n, n_files):
    write_at_once(tmp_path / "features.zarr", n)
    done = limited(n_files, USE, tmp_path / "features.zarr", n)
    assert done.stdout == "read\n", done.stderr


def write_at_once(path: Path, n: int) -> None:
    """A store of n images, written as one group: a commit for each would take long."""
    frame = tiny_frame(n)
    spec = tiny_spec(frame)
    with open_writer(path, spec, frame) as writer:
        for image in writer.pending():
            writer.put(image, tiny_rows(spec, image))


COMMANDS = """
import json, sys
import featurestore.format.zarr
featurestore.format.zarr.SHARD_BYTES = 1
from commands import biomass
for command in json.loads(sys.argv[1]):
    biomass(*command)
print("all")
"""


@pytest.mark.system
def test_K11_train_convert_and_merge_pass_with_few_descriptors(tmp_path, one_a_shard):
    """60 shards at 110 descriptors; before, each took two."""
    path = tmp_path / "features.zarr"
    write_store(path, 60)
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(store=path))
    copy, merged, archive, back = (
        tmp_path / f"{name}.zarr" for name in ("copy", "merged", "archive", "back")
    )
    commands = [
        [
            "train",
            "--config",
            tmp_path / "sweep.yaml",
            "--out",
            tmp_path / "runs",
            "--device",
            "cpu",
        ],
        ["store", "convert", path, copy],
        ["store", "merge", copy, "--out", merged],
        ["store", "verify", merged],
        ["store", "convert", path, archive, "--codec", "zstd"],
        ["store", "convert", archive, back],
    ]
    done = limited(110, COMMANDS, json.dumps(commands, default=str))
    assert done.stdout == "all\n", done.stderr


SWEEP = """
experiment: {{name: many, seed: 0}}
dataset: {{store: {store}}}
head: {{kind: [cls_gating, ridge], gate_hidden: 5, shared_hidden: 6}}
trainer: {{num_epochs: 2, batch_size: 16, checkpoint_every: 1}}
optimization: {{lr: 1e-2, weight_decay: 0.01, ema_decay: 0.5}}
inference: {{tta_indices: [0]}}
cv: {{n_folds: 2}}
"""


def test_K11_a_view_stays_as_it_is_when_its_map_is_dropped(tmp_path, one_a_shard, few_maps):
    write_tiny(tmp_path / "features.zarr")
    store = FeatureStore.open(tmp_path / "features.zarr")
    views = [store.patches[image, 1] for image in range(5)]
    assert len(maps._held) <= 3
    for image, view in enumerate(views):
        assert np.array_equal(view, tiny_rows(store.spec, image).patches_VTPD[1])


def test_K11_maps_of_all_stores_together_are_bounded(tmp_path, one_a_shard, few_maps):
    write_tiny(tmp_path / "features.zarr")
    stores = [FeatureStore.open(tmp_path / "features.zarr") for _ in range(4)]
    for store in stores:
        assert store.n_sealed == 5
    assert len(maps._held) <= 3
    for store in stores:
        store.close()
    assert not maps._held


def test_K11_a_store_that_is_forgotten_leaves_no_map(tmp_path):
    write_tiny(tmp_path / "features.h5")
    before = set(maps._held)
    store = FeatureStore.open(tmp_path / "features.h5")
    assert store.n_sealed == 5 and set(maps._held) > before
    del store
    assert set(maps._held) <= before


def test_K11_the_soft_limit_is_raised_where_that_is_allowed(monkeypatch):
    limits = {"set": (100, 300)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits["set"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.update(set=limit))
    assert maps.most_maps() == 50
    assert maps.raise_file_limit() and limits["set"] == (300, 300)
    assert not maps.raise_file_limit()
    assert maps.most_maps() == 150


HOLD = """
import sys
import featurestore.format.zarr
from featurestore import FeatureStore
store = FeatureStore.open(sys.argv[1])
try:
    held = [store.patches[image, 0] for image in range(store.n_images)]
except Exception as err:
    print(type(err).__name__, err)
"""


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="a map holds no descriptor there")
def test_K11_more_views_held_than_descriptors_is_an_error_that_says_what_to_do(
    tmp_path, one_a_shard
):
    write_at_once(tmp_path / "features.zarr", 60)
    said = limited(50, HOLD, tmp_path / "features.zarr").stdout
    assert (
        "InputError" in said
        and "cannot be opened: Too many open files; raise `ulimit -n`, or let go of rows" in said
    )


@pytest.mark.parametrize("suffix", ["h5", "zarr"])
def test_K11_no_descriptor_left_is_not_called_damage(tmp_path, monkeypatch, suffix):
    write_tiny(tmp_path / f"features.{suffix}")
    script = f"""
import os
from featurestore import FeatureStore
import featurestore.format.hdf5, featurestore.format.zarr, h5py
try:
    while True:
        os.open("/dev/null", 0)
except OSError:
    pass
try:
    FeatureStore.open({str(tmp_path / f"features.{suffix}")!r})
except Exception as err:
    print(type(err).__name__, err)
"""
    said = limited(40, script).stdout
    assert said.startswith("InputError") and "Too many open files; raise `ulimit -n`" in said


@pytest.mark.system
def test_K11_70000_shards_open_and_read(tmp_path, one_a_shard):
    """More than the kernel maps for one process."""
    n = 70_000
    write_at_once(tmp_path / "features.zarr", n)
    store = FeatureStore.open(tmp_path / "features.zarr")
    for image in range(n):
        assert store.patches[image, 1].any()
    held = [store.patches[image, 1] for image in range(100)]
    assert all(view.any() for view in held)


def test_K11_photographs_are_not_called_damaged_for_want_of_descriptors(tmp_path, monkeypatch):
    from featurestore.photos.images import read_photograph

    def full(*_, **__):
        raise OSError(24, "Too many open files", "a.jpg")

    (tmp_path / "a.jpg").write_bytes(b"no picture")
    monkeypatch.setattr(Path, "read_bytes", full)
    with pytest.raises(OSError, match="Too many open files"):
        read_photograph(tmp_path / "a.jpg")
    with pytest.raises(InputError):
        monkeypatch.undo()
        read_photograph(tmp_path / "a.jpg")


def test_K11_a_command_that_finds_no_descriptor_left_says_what_to_do(few_files, capsys):
    with pytest.raises(SystemExit) as ended, one_line_errors(), ExitStack() as files:
        for _ in range(1000):
            files.enter_context(open("/dev/null"))
    assert ended.value.code == 3
    assert "error: /dev/null: Too many open files; raise `ulimit -n`" in capsys.readouterr().err
