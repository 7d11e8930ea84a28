"""The same rows wherever they are: mapped, resident, through a ring; what is read ahead, and how
much of it."""

import contextlib
import gc
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_rows, write_tiny
from torch.utils._python_dispatch import TorchDispatchMode

from featurestore import FeatureStore
from featurestore.errors import InputError, StoreDamaged
from featurestore.read.sources.mapped import Mapped
from trainer.data.tokens import TokenReader

CPU = torch.device("cpu")
ROW_BYTES = 2 * 6 * 7 * 2
STEPS = [
    np.array([(3, 1), (0, 2), (4, 0), (1, 1)]),
    np.array([(0, 2), (2, 2), (3, 0)]),
    np.array([(1, 0), (4, 0)]),
]
PLACES = pytest.mark.parametrize(
    "room_bytes", [None, 1 << 20, 0], ids=["mapped", "resident", "ring"]
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "features.h5"
    write_tiny(path)
    return path


@pytest.fixture
def store(path) -> FeatureStore:
    return FeatureStore.open(path)


@pytest.fixture
def scarce(monkeypatch):
    """Groups of one row, windows of three, two rows held a step: less than a step has."""
    monkeypatch.setattr("trainer.data.tokens.GROUP_BYTES", ROW_BYTES)
    monkeypatch.setattr("trainer.data.tokens.WINDOW_BYTES", 3 * ROW_BYTES)
    monkeypatch.setattr("trainer.data.tokens.Ring.held_bytes", 2 * ROW_BYTES)


@pytest.fixture
def asked(monkeypatch) -> list[tuple[int, int]]:
    """Rows that the kernel was asked for, in order; all seem cold."""
    rows = []
    monkeypatch.setattr(Mapped, "will_need", lambda self, group: rows.extend(group) or len(group))
    return rows


def row_of(store: FeatureStore, row) -> torch.Tensor:
    return torch.from_numpy(tiny_rows(store.spec, int(row[0])).patches_VTPD[row[1]])


def read_steps(reader: TokenReader, hints: bool):
    """All steps' rows in order, each beside its address."""
    for rows_U2, following_U2 in zip(STEPS, [*STEPS[1:], None], strict=True):
        tokens = reader.step(rows_U2)
        if hints and following_U2 is not None:
            reader.expect(following_U2)
        yield from zip(tokens, rows_U2, strict=True)


@PLACES
@pytest.mark.parametrize("hints", [True, False], ids=["expected", "unexpected"])
def test_every_place_gives_the_same_rows_in_the_same_order(store, room_bytes, hints):
    for tokens, row in read_steps(TokenReader(store, CPU, room_bytes), hints):
        assert torch.equal(tokens, row_of(store, row))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("room_bytes", [1 << 20, 0], ids=["resident", "ring"])
def test_rows_on_cuda_are_the_same(store, room_bytes, scarce):
    for _ in range(3):  # buffers and memory are used again
        for tokens, row in read_steps(TokenReader(store, torch.device("cuda"), room_bytes), True):
            assert torch.equal(tokens.cpu(), row_of(store, row))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("room_bytes", [1 << 20, 0], ids=["resident", "ring"])
def test_rows_gathered_on_cuda_are_the_same(store, room_bytes, scarce):
    reader = TokenReader(store, torch.device("cuda"), room_bytes)
    for rows_U2, following_U2 in 3 * list(zip(STEPS, [*STEPS[1:], STEPS[0]], strict=True)):
        rows = reader.step(rows_U2)
        reader.expect(following_U2)
        expected = torch.stack([row_of(store, row) for row in rows_U2])
        assert torch.equal(rows.gathered(slice(None)).cpu(), expected)


@PLACES
def test_steps_larger_than_window_and_ring_are_read_in_any_order(store, room_bytes, scarce):
    tokens = TokenReader(store, CPU, room_bytes).step(STEPS[0])
    for u in [2, 0, 3, 1, 1, 3, 0, 2]:
        assert torch.equal(tokens[u], row_of(store, STEPS[0][u]))


def test_a_row_that_was_handed_out_stays_as_it_is(store, scarce):
    handed_out = list(read_steps(TokenReader(store, CPU, 0), True))
    assert all(torch.equal(tokens, row_of(store, row)) for tokens, row in handed_out)


@PLACES
@pytest.mark.parametrize("room", ["plenty", "scarce"])
def test_rows_that_are_gathered_are_the_same(store, room_bytes, room, request):
    if room == "scarce":
        request.getfixturevalue("scarce")
    reader = TokenReader(store, CPU, room_bytes)
    for rows_U2, following_U2 in zip(STEPS, [*STEPS[1:], STEPS[0]], strict=True):
        rows = reader.step(rows_U2)
        reader.expect(following_U2)
        assert rows.shape == (2, 6, 7)
        for own in (slice(3), slice(1, 2), slice(None)):  # some of them again
            expected = torch.stack([row_of(store, row) for row in rows_U2[own]])
            assert torch.equal(rows.gathered(own), expected)
        assert torch.equal(rows[1], row_of(store, rows_U2[1]))


def test_steps_that_share_rows_are_gathered_where_both_exceed_the_window(store, scarce):
    """What the last step had is not read ahead again: it waits while the window is full."""
    first = np.array([(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)])
    second = np.array([(0, 0), (0, 1), (1, 1), (2, 1), (3, 1), (4, 0)])
    reader = TokenReader(store, CPU, room_bytes=0)
    steps = [first, second, first]
    for rows_U2, following_U2 in zip(steps, [*steps[1:], None], strict=True):
        rows = reader.step(rows_U2)
        if following_U2 is not None:
            reader.expect(following_U2)
        for found, row in zip(rows.gathered(slice(len(rows))), rows_U2, strict=True):
            assert torch.equal(found, row_of(store, row))


@pytest.mark.parametrize("room_bytes", [1 << 20, 0], ids=["resident", "ring"])
def test_each_row_is_gathered_from_one_reading(store, room_bytes):
    reader = TokenReader(store, CPU, room_bytes)
    for rows_U2 in STEPS:
        reader.step(rows_U2).gathered(slice(None))
    n_rows = (
        sum(map(len, STEPS)) if room_bytes == 0 else len(np.unique(np.concatenate(STEPS), axis=0))
    )
    assert reader.n_bytes_read == n_rows * ROW_BYTES


class CpuAsCuda:
    """What `Cuda` answers a ring; `log` has what computing waits for."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def stream(self) -> "CpuAsCuda":
        return self

    computing = stream

    def on(self, stream: "CpuAsCuda") -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def record_event(self) -> SimpleNamespace:
        return SimpleNamespace(synchronize=lambda: None)

    def wait_event(self, event: SimpleNamespace) -> None:
        self.log.append("waited for a group")

    def empty_pinned(self, shape, dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)


class Launches(TorchDispatchMode):
    """Counts operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.names.append(func.name().removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "room_bytes, launched",
    [(1 << 20, ["cat", "index_copy_", "index_select"]), (0, ["cat"])],
    ids=["resident", "ring"],
)
def test_a_group_is_waited_for_once_and_all_rows_come_in_few_launches(
    store, room_bytes, launched, monkeypatch
):
    """Twelve rows in groups of three; before this each was waited for, recorded and copied."""
    cuda = CpuAsCuda()
    monkeypatch.setattr("trainer.data.tokens.cuda_of", lambda device: cuda)
    record = lambda tensor, stream: cuda.log.append("recorded")  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "record_stream", record)
    monkeypatch.setattr("trainer.data.tokens.GROUP_BYTES", 3 * ROW_BYTES)

    reader = TokenReader(store, CPU, room_bytes)
    rows = reader.step(np.array([(i, v) for i in range(4) for v in range(3)]))
    with Launches() as launches:
        first = rows.gathered(slice(None))
    assert sorted(cuda.log) == ["recorded"] * 4 + ["waited for a group"] * 4
    assert [name for name in launches.names if not name.startswith("_to_copy")] == launched

    again = rows.gathered(slice(None))
    assert torch.equal(first, again)


def test_a_ring_keeps_few_rows(store, scarce):
    """Two held, one latest, three on their way, two in buffers; of twelve that were read."""
    reader = TokenReader(store, CPU, 0)
    tokens = reader.step(np.array([(i, v) for i in range(4) for v in range(3)]))
    for u in range(12):
        tokens[u].shape  # noqa: B018
    gc.collect()  # readers of other tests
    storages = {
        x.untyped_storage().data_ptr()
        for x in gc.get_objects()
        if type(x) is torch.Tensor and x.dtype == torch.float16 and x.shape[-3:] == (2, 6, 7)
    }
    assert reader.n_bytes_read == 12 * ROW_BYTES
    assert len(storages) <= 2 + 1 + 3 + 2


def test_a_resident_row_is_read_once(store):
    reader = TokenReader(store, CPU, 1 << 20)
    first = [tokens.data_ptr() for tokens, _ in read_steps(reader, True)]
    again = [tokens.data_ptr() for tokens, _ in read_steps(reader, True)]
    assert first == again
    assert reader.n_bytes_read == len({tuple(row) for rows in STEPS for row in rows}) * ROW_BYTES


def test_a_mapped_row_is_a_view_of_the_file(store):
    for tokens, row in read_steps(TokenReader(store, CPU), True):
        assert tokens.data_ptr() == store.patches[tuple(row)].ctypes.data


@pytest.mark.parametrize(
    "room_bytes, says",
    [
        (None, "mapped: 2.52e-06 GB read where they lie in the file"),
        (15 * ROW_BYTES, "resident: 2.52e-06 GB kept on cpu"),
        (15 * ROW_BYTES - 1, "ring: 2.52e-06 GB through 5.04e-06 GB of buffers to cpu"),
    ],
    ids=["mapped", "resident", "ring"],
)
def test_the_place_is_chosen_by_size_and_named(store, room_bytes, says):
    assert TokenReader(store, CPU, room_bytes).residency == says


@pytest.mark.parametrize("room_bytes", [None, 0], ids=["mapped", "ring"])
def test_a_step_whose_rows_nobody_uses_reads_nothing(store, asked, room_bytes):
    reader = TokenReader(store, CPU, room_bytes)
    reader.step(STEPS[0])
    reader.expect(STEPS[1])
    assert reader.n_bytes_read == 0 and not asked


def test_rows_are_asked_for_before_they_are_touched_and_the_next_steps_follow(store, asked):
    reader = TokenReader(store, CPU)
    tokens = reader.step(STEPS[0])
    reader.expect(STEPS[1])
    for u, row in enumerate(STEPS[0].tolist()):
        tokens[u].shape  # noqa: B018
        assert tuple(row) in asked
    settle(reader)
    assert asked == [
        tuple(row)
        for step in STEPS[:2]
        for row in step.tolist()
        if step is STEPS[0] or row != [0, 2]
    ]


def test_no_more_than_a_window_is_asked_for(store, asked, scarce):
    reader = TokenReader(store, CPU)
    tokens = reader.step(STEPS[0])
    reader.expect(STEPS[1])
    for used in range(1, 5):
        tokens[used - 1].shape  # noqa: B018
        settle(reader)
        # the row in use and what follows it, as far as the window and the two steps go
        assert used < len(asked) <= used + 3
    assert len(set(asked)) == len(asked)


def settle(reader: TokenReader) -> None:
    """Wait for the reading thread."""
    reader._place._ahead._pool.submit(int).result()


def test_what_is_in_memory_is_asked_for_ever_more_rarely(store, asked, monkeypatch):
    monkeypatch.setattr(Mapped, "will_need", lambda self, group: asked.extend(group) or 0)
    reader = TokenReader(store, CPU)
    for _ in range(500):
        list(reader.step(STEPS[2]))
    assert 2 * (2 + 500 / 32) <= len(asked) < 2 * 30


def test_reading_ahead_stops_with_the_error_it_met(path, tmp_path):
    shutil.copy(path, tmp_path)
    store = FeatureStore.open(tmp_path / path.name)
    store.require_all()
    reader = TokenReader(store, CPU, 0)
    os.truncate(store.path, store.layout.extents["patches"].locate(4)[1])
    with pytest.raises(StoreDamaged, match="cut"):
        list(reader.step(STEPS[0]))


def test_the_kernel_is_asked_for_every_byte_of_cold_rows_alone(store_path, monkeypatch):
    write_tiny(store_path)
    store, calls = FeatureStore.open(store_path), []
    places = [store.layout.extents["patches"].locate(3 * i + v)[:2] for i, v in STEPS[0]]
    monkeypatch.setattr("featurestore.disk.page_cache.ADVISE_BYTES", 100)
    monkeypatch.setattr(
        "featurestore.read.sources.local.is_cached",
        lambda fd, offset, n: (file_of(fd), offset) == places[1],
    )
    monkeypatch.setattr(
        os, "posix_fadvise", lambda fd, offset, n, advice: calls.append((file_of(fd), offset, n))
    )
    assert store.will_need(STEPS[0]) == 3
    assert calls == [
        (file, start + at, n)
        for file, start in (places[0], *places[2:])
        for at, n in ((0, 100), (100, ROW_BYTES - 100))
    ]


def file_of(fd: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{fd}"))


def test_rows_in_memory_are_not_asked_for(store):
    store.take(STEPS[0])
    with open(store.path, "rb") as file:
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except OSError:
            pytest.skip("this file system does not tell what is in memory")
    assert store.will_need(STEPS[0]) == 0


def test_rows_that_are_not_there_are_refused(tmp_path):
    write_tiny(tmp_path / "f.h5", seal=2)
    store = FeatureStore.open(tmp_path / "f.h5")
    with pytest.raises(InputError, match="not built yet"):
        store.will_need([(3, 0)])
    with pytest.raises(InputError, match="not built yet"):
        TokenReader(store, CPU).step(STEPS[0])[0]


def test_a_row_that_may_not_be_read_is_refused_each_time(tmp_path):
    path = tmp_path / "features.h5"
    write_tiny(path)
    file, offset, _ = FeatureStore.open(path).layout.extents["patches"].locate(3 * 3 + 1)
    with open(file, "r+b") as rotten:
        rotten.seek(offset)
        rotten.write(b"\xff")
    step = TokenReader(FeatureStore.open(path, check="first-touch"), CPU).step(np.array([(3, 1)]))
    for _ in range(3):
        with pytest.raises(StoreDamaged, match="ID003"):
            step[0]
