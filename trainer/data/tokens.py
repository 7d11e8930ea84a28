"""Where stored rows are when a step wants them: mapped, resident on the device, or on their way
there through a ring.

One interface for the three places, the same rows in the same order in all. What is done with rows
is left to `pooling`.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featurestore.disk.durable import page_aligned
from featurestore.disk.maps import most_maps
from featurestore.disk.threads import Pool
from featurestore.read.source import Row
from featurestore.store import FeatureStore

# rows that are read ahead together: a hand-over to the other thread costs 25 us
GROUP_BYTES = 64 << 20
WINDOW_BYTES = 512 << 20  # rows on their way at once, at most; and no more than a step has
# rows of one step that stay on the device until the step is over; further ones are fetched at each
# use
HELD_BYTES = 1 << 30
MOST_REST = 31  # steps without asking, when all was in memory
N_BUFFERS = 2  # pinned: one is filled while the other is copied from


class TokenReader:
    """Stored rows as tensors on a device. `residency` says in a few words where they are; a pooled
    store has none.

    The CPU reads rows where they are mapped. Another device keeps every row it was given if all of
    the store fits into room_bytes (half of what is free there unless given; the other half is the
    heads', see trainer.loop.plan); if not, rows come through pinned buffers while it computes. With
    room_bytes the CPU does as another device would.
    """

    def __init__(
        self, store: FeatureStore, device: torch.device, room_bytes: int | None = None
    ) -> None:
        self.store = store
        self.device = device
        self._place = _place(store, device, room_bytes)
        self.residency = self._place.residency
        self._step: StepRows | None = None
        self._next: list[Row] = []

    @property
    def n_bytes_read(self) -> int:
        """Of tokens, from the store."""
        return self._place.n_bytes_read

    def step(self, rows_U2: np.ndarray) -> "StepRows":
        """The rows of a step; from the first one that is used, all are on their way."""
        self._step = StepRows(_rows(rows_U2), self._place, self.begin)
        self._next = []
        return self._step

    def expect(self, rows_U2: np.ndarray) -> None:
        """Hint which rows the next step will want; they follow this step's."""
        self._next = _rows(rows_U2)
        if self._step and self._step.begun:
            self._place.expect(self._next)

    def begin(self, rows: Sequence[Row]) -> None:
        """A step uses its first row. Not before: heads that need no patches must not cause a read
        of them."""
        self._place.begin(rows)
        self._place.expect(self._next)


class StepRows(Sequence):
    """The distinct rows of a step as stored: (T, P, D) float16, on the CPU views of the file.

    begin : told all rows before the first one is read.
    """

    def __init__(
        self, rows: Sequence[Row], place: "Place", begin: Callable[[Sequence[Row]], None]
    ) -> None:
        self._rows = rows
        self._place = place
        self._begin = begin
        self._held: dict[int, Tensor] = {}
        self._latest: tuple[int, Tensor] | None = None
        self.begun = False

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, u: int) -> Tensor:
        if u in self._held:
            return self._held[u]
        if self._latest is None or self._latest[0] != u:
            # first: what is no row of this step ends a loop over it, and begins nothing
            row = self._rows[u]
            if not self.begun:
                self._begin(self._rows)  # raises for a row that may not be read, each time
                self.begun = True
            self._latest = (u, self._place.row(row))

        tokens_TPD = self._latest[1]
        if (len(self._held) + 1) * tokens_TPD.nbytes <= self._place.held_bytes:
            self._held[u] = tokens_TPD
        return tokens_TPD


class Ahead:
    """Work on rows that is begun before they are asked for: in order, in groups, by one thread, so
    many at a time.

    work : takes the rows of a group.
    n_most : rows begun and not yet asked for, at most; while a step has fewer rows, so many.
    """

    def __init__(self, work: Callable[[list[Row]], Any], n_group: int, n_most: int) -> None:
        self._work = work
        self._n_group = n_group
        self._n_most = n_most
        self._n_window = n_most  # of the step under way
        self._waiting: dict[Row, None] = {}  # in order
        self._begun: dict[Row, Future] = {}
        self._pool = Pool(1, "read-ahead")

    def begin(self, rows: Sequence[Row]) -> None:
        """These rows are wanted now, in this order; others that were expected are forgotten."""
        wanted = set(rows)
        self._begun = {row: future for row, future in self._begun.items() if row in wanted}
        self._n_window = min(self._n_most, max(1, len(rows)))
        self._waiting = {}
        self.expect(rows)

    def expect(self, rows: Iterable[Row]) -> None:
        """These come after the others."""
        self._waiting |= {row: None for row in rows if row not in self._begun}
        self._start()

    def take(self, row: Row) -> Any:
        """What work gave for the row's group, waited for; None for a row that was not begun. An
        error of the work is raised."""
        self._waiting.pop(row, None)
        future = self._begun.pop(row, None)
        self._start()
        return None if future is None else future.result()

    def at_once(self, rows: list[Row]) -> Any:
        """The same work for rows that nobody expected, after what is under way."""
        return self._pool.submit(self._work, rows).result()

    def _start(self) -> None:
        """Hand over whole groups while they fit the window, four a window or more; a hand-over for
        each row would cost more."""
        while self._waiting:
            n = min(self._n_group, len(self._waiting), -(-self._n_window // 4))
            if len(self._begun) + n > self._n_window:
                return
            group = list(itertools.islice(self._waiting, n))
            future = self._pool.submit(self._work, group)
            for row in group:
                del self._waiting[row]
                self._begun[row] = future


class Mapped:
    """Rows where they lie in the file. Before one is touched, the kernel was asked for it and for
    those that follow.

    Touching a row that is not in the page cache waits for the disk again and again, and reads
    around the row as well: twice the bytes, in shuffled order (bench_read_ahead).
    """

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._source = store.source
        self.n_bytes_read = 0
        one_file = len(store.layout.extents["patches"].paths) == 1
        # views cost nothing, but that each keeps the map of its file
        self.held_bytes = math.inf if one_file else max(1, most_maps() // 4) * _row_bytes(store)
        self._ahead = Ahead(self._ask, _count(store, GROUP_BYTES), _count(store, WINDOW_BYTES))
        self._n_rest = self._rested = 0
        self._cold = True
        self.residency = f"mapped: {_gb(_all_bytes(store))} {store.source.manner}"

    def begin(self, rows: Sequence[Row]) -> None:
        """Require the rows of a step, so that each can come straight from the source; and have them
        read ahead.

        Even asking costs a few percent of reading warm rows: the longer none was cold, the more
        steps go by without.
        """
        self._store.require_rows(rows)
        if self._store.check == "first-touch":
            self._store.check_rows(rows)

        if self._rested < self._n_rest:
            self._rested += 1
            return
        self._n_rest = 0 if self._cold else min(2 * self._n_rest + 1, MOST_REST)
        self._rested = 0
        self._cold = False
        self._ahead.begin(rows)

    def expect(self, rows: Sequence[Row]) -> None:
        if self._n_rest == 0:
            self._ahead.expect(rows)

    def row(self, row: Row) -> Tensor:
        self._ahead.take(row)
        image, view = row
        tokens_TPD = torch.from_dlpack(self._source.patches(image, (view,))[view])
        self.n_bytes_read += tokens_TPD.nbytes
        return tokens_TPD

    def _ask(self, rows: list[Row]) -> None:
        # a step requires its rows when it begins; those of the next one are only a hint
        self._cold |= self._source.will_need(rows) > 0


@dataclass(frozen=True)
class _Arrived:
    """A group of rows on the device, or on the copying stream's way there."""

    tokens: dict[Row, Tensor]
    copied: torch.cuda.Event | None


class Ring:
    """Rows copied to the device through pinned buffers, the next step's while this one computes.

    Every row handed out is memory of its own, for as long as somebody holds it; only the buffers
    are used again. On the CPU the same without pinning and streams.
    """

    held_bytes = HELD_BYTES

    def __init__(self, store: FeatureStore, device: torch.device) -> None:
        self._store = store
        self._device = device
        self.n_bytes_read = 0
        n_group = _count(store, GROUP_BYTES)
        self._buffers = itertools.cycle(
            [_Buffer(_host_rows(store, n_group, device)) for _ in range(N_BUFFERS)]
        )
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ahead = Ahead(self._fetch, n_group, max(n_group, _count(store, WINDOW_BYTES)))
        self.begin = self._ahead.begin
        self.expect = self._ahead.expect
        buffers = N_BUFFERS * n_group * _row_bytes(store)
        self.residency = (
            f"ring: {_gb(_all_bytes(store))} through {_gb(buffers)} of buffers to {device}"
        )

    def row(self, row: Row) -> Tensor:
        arrived = self._ahead.take(row) or self._ahead.at_once([row])
        tokens_TPD = arrived.tokens[row]
        if self._stream:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(arrived.copied)
            # made on the copying stream: its memory must outlive what computes with it
            tokens_TPD.record_stream(computing)
        return tokens_TPD

    def _fetch(self, rows: list[Row]) -> _Arrived:
        """Disk or page cache to buffer to device; in the thread that reads ahead."""
        buffer = next(self._buffers)
        if buffer.copied:
            buffer.copied.synchronize()  # what was in it has left
        host_NTPD = buffer.rows_NTPD[: len(rows)]
        self._store.take(rows, out=host_NTPD.numpy())
        self.n_bytes_read += host_NTPD.nbytes
        with torch.cuda.stream(self._stream):  # None: no stream
            tokens = host_NTPD.to(self._device, non_blocking=True, copy=True)
        buffer.copied = self._stream.record_event() if self._stream else None
        return _Arrived(dict(zip(rows, tokens.unbind(), strict=True)), buffer.copied)


@dataclass
class _Buffer:
    """Host memory, and the event after which it can be filled again."""

    rows_NTPD: Tensor
    copied: torch.cuda.Event | None = None


class Resident:
    """All rows of the store on the device; each comes through a ring the first time, and stays."""

    held_bytes = math.inf

    def __init__(self, store: FeatureStore, device: torch.device) -> None:
        self._ring = Ring(store, device)
        self._n_views = len(store.view_names)
        n = store.n_images * self._n_views
        self._tokens = torch.empty(
            (n, *store.patches.shape[2:]), dtype=torch.float16, device=device
        )
        self._here_N = np.zeros(n, bool)
        self.residency = f"resident: {_gb(self._tokens.nbytes)} kept on {device}"

    @property
    def n_bytes_read(self) -> int:
        return self._ring.n_bytes_read

    def begin(self, rows: Sequence[Row]) -> None:
        self._ring.begin(self._missing(rows))

    def expect(self, rows: Iterable[Row]) -> None:
        self._ring.expect(self._missing(rows))

    def row(self, row: Row) -> Tensor:
        n = self._number(row)
        if not self._here_N[n]:
            self._tokens[n].copy_(self._ring.row(row))
            self._here_N[n] = True
        return self._tokens[n]

    def _missing(self, rows: Iterable[Row]) -> list[Row]:
        return [row for row in rows if not self._here_N[self._number(row)]]

    def _number(self, row: Row) -> int:
        return row[0] * self._n_views + row[1]


class Nowhere:
    """The patch tokens of a pooled store: none. Heads that read none ask for none."""

    residency = (
        "none: a pooled store; heads read class tokens "
        "and pooled vectors where they lie in the file"
    )
    held_bytes = math.inf
    n_bytes_read = 0

    def __init__(self, store: FeatureStore) -> None:
        self._store = store

    def begin(self, rows: Sequence[Row]) -> None:
        """Nothing to be on its way."""

    expect = begin

    def row(self, row: Row) -> Tensor:
        # InputError: the store says what it lacks
        return torch.from_dlpack(self._store.patches[row])


Place = Mapped | Resident | Ring | Nowhere


def _place(store: FeatureStore, device: torch.device, room_bytes: int | None) -> Place:
    """By measured size: all that fits, else some at a time."""
    if not store.spec.has_patches:
        return Nowhere(store)
    if room_bytes is None and device.type == "cpu":
        return Mapped(store)
    if room_bytes is None:
        room_bytes = torch.cuda.mem_get_info(device)[0] // 2 - WINDOW_BYTES
    return (Resident if _all_bytes(store) <= room_bytes else Ring)(store, device)


def _host_rows(store: FeatureStore, n: int, device: torch.device) -> Tensor:
    shape = (n, *store.patches.shape[2:])
    if device.type == "cuda":
        return torch.empty(shape, dtype=torch.float16, pin_memory=True)
    return torch.from_numpy(page_aligned(shape, np.float16))


def _rows(rows_U2: np.ndarray) -> list[Row]:
    return list(map(tuple, np.asarray(rows_U2).tolist()))


def _count(store: FeatureStore, n_bytes: int) -> int:
    """Rows in so many bytes: one at least, all of the store at most."""
    return min(max(1, n_bytes // _row_bytes(store)), store.n_images * len(store.view_names))


def _row_bytes(store: FeatureStore) -> int:
    return math.prod(store.patches.shape[2:]) * store.patches.dtype.itemsize


def _all_bytes(store: FeatureStore) -> int:
    return store.n_images * len(store.view_names) * _row_bytes(store)


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.3g} GB"
