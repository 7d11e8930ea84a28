"""Any sequence of builds, kills, rot, repairs and reads, against a model: which images are
committed, which bytes are not theirs.

No image is ever returned that is not what was put, verify finds all damage to what is committed,
and a repair followed by a build (after lost or cut files were brought back) makes the store whole.
"""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_rows
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from writer_child import builders

from featurestore import FeatureStore
from featurestore.errors import BiomassError
from featurestore.manage.verify import repair

ROOM = 7
ARRAYS = ("cls_VTD", "patches_VTPD", "pooled_VT5D", "stats_VS", "thumb_HW3")


class StoreMachine(RuleBasedStateMachine):
    """`sealed`: the images that are committed. `undo`: by file, its bytes before it was damaged."""

    build_in_child = None  # set by the test: one server of children for all examples

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(
            tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        )
        self.n, self.sealed, self.undo, self.must_find = 0, set(), {}, False

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize(suffix=st.sampled_from(["h5", "zarr"]))
    def create(self, suffix: str) -> None:
        self.path = self.folder / f"f.{suffix}"
        self.n = 3
        self._build(limit=1)
        self.layout = FeatureStore.open(self.path).layout

    def _build(self, **request) -> None:
        said = type(self).build_in_child(self.path, n=self.n, reserve=ROOM - self.n, **request)
        assert "error" not in said
        self.sealed |= set(said["acknowledged"])

    def _is_damaged(self) -> bool:
        return bool(self.undo)

    # -- what a builder does; on a store that is not damaged, or it must be repaired first

    @precondition(lambda self: not self._is_damaged())
    @rule(limit=st.integers(1, 3))
    def build_some(self, limit: int) -> None:
        self._build(limit=limit)

    @precondition(lambda self: not self._is_damaged())
    @rule(call=st.integers(1, 90), limit=st.integers(1, 7))
    def kill_a_build(self, call: int, limit: int) -> None:
        self._build(kill_at=call, limit=limit)
        # committed, and killed before saying so
        self.sealed = set(FeatureStore.open(self.path).sealed.tolist()) | self.sealed

    @precondition(lambda self: not self._is_damaged() and self.n < ROOM)
    @rule(more=st.integers(1, 2), call=st.integers(0, 60))
    def append_images(self, more: int, call: int) -> None:
        self.n = min(ROOM, self.n + more)
        self._build(kill_at=call)
        self.sealed = set(FeatureStore.open(self.path).sealed.tolist()) | self.sealed

    # -- what happens to files

    def _files(self) -> list[Path]:
        return (
            sorted(each for each in self.path.rglob("*") if each.is_file())
            if self.path.is_dir()
            else [self.path]
        )

    def _remember(self, file: Path) -> None:
        self.undo.setdefault(file, file.read_bytes())

    @rule(
        where=st.floats(0, 1, exclude_max=True),
        which=st.floats(0, 1, exclude_max=True),
        bit=st.integers(0, 7),
    )
    def flip_a_bit(self, which: float, where: float, bit: int) -> None:
        files = [file for file in self._files() if file.stat().st_size]
        if files:
            file = files[int(which * len(files))]
            self._flip(file, int(where * file.stat().st_size), bit)

    @rule(
        which=st.floats(0, 1, exclude_max=True),
        row=st.floats(0, 1, exclude_max=True),
        where=st.floats(0, 1, exclude_max=True),
        bit=st.integers(0, 7),
    )
    def flip_a_bit_of_an_array(self, which: float, row: float, where: float, bit: int) -> None:
        """The small ones as often as the large."""
        extent = [*self.layout.extents.values()][int(which * len(self.layout.extents))]
        file, offset, n_bytes = extent.locate(int(row * extent.array.n_rows))
        offset += int(where * n_bytes)
        if file.exists() and file.stat().st_size > offset:
            self._flip(file, offset, bit)

    def _flip(self, file: Path, offset: int, bit: int) -> None:
        self._remember(file)
        with open(file, "r+b", buffering=0) as handle:
            byte = os.pread(handle.fileno(), 1, offset)[0]
            os.pwrite(handle.fileno(), bytes([byte ^ 1 << bit]), offset)
        if file.read_bytes() == self.undo[file]:  # the very bit, back again
            del self.undo[file]

    @rule(which=st.floats(0, 1, exclude_max=True), where=st.floats(0, 1, exclude_max=True))
    def cut_a_file(self, which: float, where: float) -> None:
        files = [file for file in self._files() if file.stat().st_size]
        if files:
            file = files[int(which * len(files))]
            self._remember(file)
            os.truncate(file, int(where * file.stat().st_size))

    @precondition(lambda self: self.path.is_dir() and self._files())
    @rule(which=st.floats(0, 1, exclude_max=True))
    def delete_a_file(self, which: float) -> None:
        files = self._files()
        file = files[int(which * len(files))]
        self._remember(file)
        file.unlink()

    @precondition(lambda self: self._is_damaged())
    @rule()
    def restore(self) -> None:
        for file, data in self.undo.items():
            file.write_bytes(data)
        self.undo.clear()

    # -- what is promised

    def _damaged_images(self) -> set[int] | None:
        """Committed images of which a byte changed; None if something else changed that a store
        cannot do without."""
        images = set()
        for file, data in self.undo.items():
            now = file.read_bytes() if file.exists() else b""
            if len(now) != len(data):
                return None
            for at in np.flatnonzero(
                np.frombuffer(now, np.uint8) != np.frombuffer(data, np.uint8)
            ).tolist():
                if (image := self._image_at(file, at)) is None:
                    return None
                images.add(image)
        return images & self.sealed

    def _image_at(self, file: Path, offset: int) -> int | None:
        for name, extent in self.layout.extents.items():
            if file in extent.paths and name != "metadata_crc32c":
                number = extent.paths.index(file)
                row, _ = divmod(offset - extent.offset, extent.stride)
                if 0 <= row < extent.rows_in(number):
                    return (row + number * extent.rows_per_file) // (3 if name == "patches" else 1)
        return None

    @rule()
    def verify(self) -> None:
        damaged = self._damaged_images()
        try:
            report = FeatureStore.open(self.path).verify()
        except BiomassError:
            assert damaged is None or self._is_damaged()
            return
        if damaged is None:
            assert report.faults
        elif not self._is_damaged():
            assert not report.faults and set(range(report.n_images)) >= self.sealed
        else:
            assert damaged <= set(report.damaged)

    @precondition(lambda self: self._is_damaged() and self._damaged_images() is not None)
    @rule()
    def repair_and_build(self) -> None:
        """All that is rotten is some image's, committed or not: no backup is needed."""
        try:
            repair(self.path)
        except BiomassError as err:
            raise AssertionError(f"refused, although only rows are damaged: {err}") from err
        self.undo.clear()
        self._build()
        self.sealed = set(range(self.n))
        store = FeatureStore.open(self.path)
        assert store.sealed.tolist() == list(range(self.n)) and not store.verify().faults
        assert sorted(store.catalog["image_id"]) == [f"ID{i:03d}" for i in range(self.n)]

    @invariant()
    def reads_give_what_was_put_or_refuse(self) -> None:
        if not self.n:
            return
        damaged = self._damaged_images()
        try:
            store = FeatureStore.open(self.path, check="first-touch")
        except BiomassError:
            assert self._is_damaged()
            return
        right = set()
        for image in range(store.n_images):
            try:
                rows = store.rows(image)
            except BiomassError:
                continue
            truth = tiny_rows(store.spec, int(store.catalog["image_id"][image][2:]))
            assert all(np.array_equal(getattr(rows, name), getattr(truth, name)) for name in ARRAYS)
            assert (
                store.catalog["Dry_Total_g"][image]
                == int(store.catalog["image_id"][image][2:]) * 1.5 + 1
            )
            right.add(image)
        assert right <= self.sealed
        if damaged is not None:
            assert self.sealed - damaged <= right  # of a row's padding only verify tells


def check_machine(examples: int, steps: int) -> None:
    with builders() as run:
        StoreMachine.build_in_child = staticmethod(run)
        run_state_machine_as_test(
            StoreMachine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                derandomize=examples < 100,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_C1_C2_any_sequence_of_builds_kills_rot_and_repairs_keeps_what_was_committed():
    check_machine(examples=4, steps=14)


@pytest.mark.system
def test_C1_C2_long_sequences_of_builds_kills_rot_and_repairs_keep_what_was_committed():
    check_machine(examples=200, steps=40)
