"""Where stored rows are when a step wants them: mapped, resident on the device, or on their way
there through a ring.

One interface for the three places, the same rows in the same order in all. What is done with rows
is left to `pooling`.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featurestore.backbone.lane import Cuda
from featurestore.disk.durable import page_aligned
from featurestore.disk.maps import most_maps
from featurestore.read.source import Row
from featurestore.store import FeatureStore
from trainer.data.ahead import Ahead
from trainer.heads.sending import on_device

# rows that are read ahead together: a hand-over to the other thread costs 25 us
GROUP_BYTES = 64 << 20
WINDOW_BYTES = 512 << 20  # rows on their way at once, at most; and no more than a step has
# rows of one step that stay on the device; further ones are fetched at each use
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
        self._step = StepRows(_rows(rows_U2), self, self._place)
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

    The reader is told all of them before the first one is read.
    """

    dtype = torch.float16

    def __init__(self, rows: Sequence[Row], reader: TokenReader, place: "Place") -> None:
        self._rows = rows
        self._reader = reader
        self._place = place
        self._held: dict[int, Tensor] = {}
        self._latest: tuple[int, Tensor] | None = None
        self.device = reader.device
        self.begun = False

    @property
    def shape(self) -> torch.Size:
        """(T, P, D) of each row; reads none. InputError in a pooled store."""
        return torch.Size(self._reader.store.patches.shape[2:])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, u: int) -> Tensor:
        if u in self._held:
            return self._held[u]
        if self._latest is None or self._latest[0] != u:
            # first: what is no row of this step ends a loop over it, and begins nothing
            row = self._rows[u]
            self._begin()
            self._latest = (u, self._place.row(row))

        tokens_TPD = self._latest[1]
        if (len(self._held) + 1) * tokens_TPD.nbytes <= self._place.held_bytes:
            self._held[u] = tokens_TPD
        return tokens_TPD

    def gathered(self, own: slice) -> Tensor:
        """(U, T, P, D) some of the rows together, not to be written to; kept by whoever asked."""
        self._begin()
        return self._place.gathered(self._rows[own])

    def _begin(self) -> None:
        if not self.begun:
            self._reader.begin(self._rows)  # raises for a row that may not be read, each time
            self.begun = True


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
        # 0, 1, 3, 7, ...: as soon as one row was cold, every step asks again
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

    def gathered(self, rows: Sequence[Row]) -> Tensor:
        return torch.stack([self.row(row) for row in rows])

    def _ask(self, rows: list[Row]) -> None:
        # a step requires its rows when it begins; those of the next one are only a hint
        self._cold |= self._source.will_need(rows) > 0


@dataclass(eq=False)
class _Arrived:
    """A group of rows on the device, or on the copying stream's way there."""

    rows_NTPD: Tensor
    places: dict[Row, int]
    copied: torch.cuda.Event | None
    is_waited_for: bool = False
    """By the stream that computes: what it is given from then on comes after the copy."""


class Ring:
    """Rows copied to the device through pinned buffers, the next step's while this one computes.

    Groups that are handed out are memory of their own, for as long as somebody holds a row of them;
    only the buffers are used again. On the CPU the same without pinning and streams.
    """

    held_bytes = HELD_BYTES

    def __init__(self, store: FeatureStore, device: torch.device) -> None:
        self._store = store
        self._device = device
        self._cuda = cuda_of(device)
        self.n_bytes_read = 0
        self._n_group = _count(store, GROUP_BYTES)
        self._buffers = itertools.cycle([_Buffer(self._host_rows()) for _ in range(N_BUFFERS)])
        self._stream = self._cuda.stream() if self._cuda else None
        n_most = max(self._n_group, _count(store, WINDOW_BYTES))
        self._ahead = Ahead(self._fetch, self._n_group, n_most)
        self.begin = self._ahead.begin
        self.expect = self._ahead.expect
        buffers = N_BUFFERS * self._n_group * _row_bytes(store)
        self.residency = (
            f"ring: {_gb(_all_bytes(store))} through {_gb(buffers)} of buffers to {device}"
        )

    def row(self, row: Row) -> Tensor:
        arrived = self._ahead.take(row) or self._ahead.at_once([row])
        return self._ready(arrived)[arrived.places[row]]

    def gathered(self, rows: Sequence[Row]) -> Tensor:
        """In one copy: rows came in the order of a step, so most of a group lie side by side."""
        at_once: dict[Row, _Arrived] = {}
        stretches: list[tuple[_Arrived, int, int]] = []
        for i, row in enumerate(rows):
            arrived = at_once.get(row) or self._ahead.take(row)
            if arrived is None:
                # nobody expected it, or it waits behind a full window: with it come the next ones
                group = [r for r in rows[i : i + self._n_group] if not self._ahead.has_begun(r)]
                arrived = self._ahead.at_once(group)
                at_once |= dict.fromkeys(group, arrived)
            first = place = arrived.places[row]
            if stretches and stretches[-1][::2] == (arrived, place):
                first = stretches.pop()[1]
            stretches.append((arrived, first, place + 1))
        parts = [self._ready(arrived)[first:end] for arrived, first, end in stretches]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _ready(self, arrived: _Arrived) -> Tensor:
        """A group for what computes: its copy is waited for there, once, and not by the host."""
        if self._cuda and not arrived.is_waited_for:
            computing = self._cuda.computing()
            computing.wait_event(arrived.copied)
            # made on the copying stream: its memory must outlive what computes with it
            arrived.rows_NTPD.record_stream(computing)
            arrived.is_waited_for = True
        return arrived.rows_NTPD

    def _fetch(self, rows: list[Row]) -> _Arrived:
        """Disk or page cache to buffer to device; in the thread that reads ahead."""
        buffer = next(self._buffers)
        if buffer.copied:
            buffer.copied.synchronize()  # what was in it has left
        host_NTPD = buffer.rows_NTPD[: len(rows)]
        self._store.take(rows, out=host_NTPD.numpy())
        self.n_bytes_read += host_NTPD.nbytes
        with self._cuda.on(self._stream) if self._cuda else nullcontext():
            rows_NTPD = host_NTPD.to(self._device, non_blocking=True, copy=True)
        buffer.copied = self._stream.record_event() if self._stream else None
        places = {row: place for place, row in enumerate(rows)}
        return _Arrived(rows_NTPD, places, buffer.copied)

    def _host_rows(self) -> Tensor:
        shape = (self._n_group, *self._store.patches.shape[2:])
        if self._cuda:
            return self._cuda.empty_pinned(shape, torch.float16)
        return torch.from_numpy(page_aligned(shape, np.float16))


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
        self._device = device
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
        self._bring([row])
        return self._tokens[self._number(row)]

    def gathered(self, rows: Sequence[Row]) -> Tensor:
        self._bring(rows)
        return self._tokens.index_select(0, self._numbers(rows))

    def _bring(self, rows: Sequence[Row]) -> None:
        """Rows that are not here yet, in one copy."""
        missing = self._missing(rows)
        if missing:
            self._tokens.index_copy_(0, self._numbers(missing), self._ring.gathered(missing))
            self._here_N[[self._number(row) for row in missing]] = True

    def _missing(self, rows: Iterable[Row]) -> list[Row]:
        return [row for row in rows if not self._here_N[self._number(row)]]

    def _numbers(self, rows: Sequence[Row]) -> Tensor:
        numbers = torch.tensor([self._number(row) for row in rows])
        return on_device(numbers, self._device)

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

    gathered = row


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


def cuda_of(device: torch.device) -> Cuda | None:
    """What a ring asks of CUDA; None elsewhere."""
    return Cuda(device) if device.type == "cuda" else None


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
