"""How tiles reach a device and how tokens come back, without the host waiting for either.

`Streamed` is for CUDA, `Direct` for a CPU, where nothing has to move. `Cuda` is all that `Streamed`
asks of CUDA, so that tests can take its place.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Arrived = Callable[[], None]
"""Waits until tokens have come back."""
Pairs = Sequence[tuple[Tensor, Tensor]]
"""What is copied, and where to."""


class Lane(Protocol):
    """Between the host and a device."""

    n_behind: int
    """Batches whose tokens may still be on their way while the next one is computed."""

    def up(self, tiles: Tensor) -> Tensor:
        """A tensor of the host on the device."""

    def down(self, pairs: Pairs) -> Arrived:
        """Begin to copy tensors of the device into buffers of the host."""

    def empty(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """A buffer of the host."""


class Direct:
    """Host and device are one."""

    n_behind = 0

    def up(self, tiles: Tensor) -> Tensor:
        return tiles

    def down(self, pairs: Pairs) -> Arrived:
        for source, buffer in pairs:
            buffer.copy_(source)
        return lambda: None  # what is there need not be waited for

    def empty(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        return np.empty(shape, dtype)


class Cuda:
    """CUDA on one device, as torch gives it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)

    @contextmanager
    def on(self, stream: torch.cuda.Stream) -> Iterator[None]:
        # its device first: a stream of a device that is not the thread's current one ends with
        # cudaSetDevice of that one, which takes half a gigabyte of it for a context
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            yield

    def computing(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.device)

    def event(self) -> torch.cuda.Event:
        return torch.cuda.Event()

    def pinned(self, tiles: Tensor) -> Tensor:
        return tiles.pin_memory()

    def empty_pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def peak_bytes(self, call: Callable[[], object]) -> int:
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        return torch.cuda.max_memory_allocated(self.device)

    def free_bytes(self) -> int:
        free, _ = torch.cuda.mem_get_info(self.device)
        # what torch holds and does not use is free too
        reserved = torch.cuda.memory_reserved(self.device)
        return free + reserved - torch.cuda.memory_allocated(self.device)


class Streamed:
    """Pinned buffers up, and a stream of its own down."""

    n_behind = 1

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._copying = cuda.stream()

    def up(self, tiles: Tensor) -> Tensor:
        # torch's cache of pinned memory gives a block away again only after such a copy has ended
        return self._cuda.pinned(tiles).to(self._cuda.device, non_blocking=True)

    def down(self, pairs: Pairs) -> Arrived:
        # the device waits for the tokens, the host does not
        self._copying.wait_stream(self._cuda.computing())
        with self._cuda.on(self._copying):
            for source, buffer in pairs:
                buffer.copy_(source, non_blocking=True)
            event = self._cuda.event()
            event.record(self._copying)

        def arrived(sources: Pairs = pairs) -> None:
            # holding the sources until then keeps their memory from being given away
            event.synchronize()

        return arrived

    def empty(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        # torch has no public table of NumPy's dtypes
        torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
        return self._cuda.empty_pinned(shape, torch_dtype).numpy()

    def measure(self, call: Callable[[], object]) -> tuple[float, int]:
        n_bytes = self._cuda.peak_bytes(call)  # the first call warms up, too
        self._cuda.synchronize()
        start = time.perf_counter()
        call()
        self._cuda.synchronize()
        return time.perf_counter() - start, n_bytes

    def free_bytes(self) -> int:
        return self._cuda.free_bytes()


def lane_of(device: torch.device) -> Direct | Streamed:
    return Streamed(Cuda(device)) if device.type == "cuda" else Direct()
