"""The patch tokens of several stores, read side by side."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from trainer.data.tokens import WINDOW_BYTES, StepRows, TokenReader
from trainer.data.used_store import UsedStore


class TokenReaders:
    """A token reader for each store that patches are read from, told rows as a sweep numbers them.

    On CUDA half of the free memory, or what heads leave of it, is shared out evenly among them,
    unless room_bytes is given (see `TokenReader`).

    heads_bytes : tells what the largest pass will need on the device; its heads are not there yet.
    """

    def __init__(
        self,
        stores: Mapping[str, UsedStore],
        device: torch.device,
        room_bytes: int | None = None,
        heads_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        if room_bytes is None and device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
            # half, as TokenReader takes by itself; rows on their way through a ring need room
            # beside those that stay
            most = min(free // 2, free - heads_bytes())
            room_bytes = most // len(stores) - WINDOW_BYTES
        self._stores = stores
        self._readers = {
            name: TokenReader(used.store, device, room_bytes) for name, used in stores.items()
        }

    @property
    def residency(self) -> str:
        """Where the rows are, in a few words; of several stores with their names."""
        told = {name: reader.residency for name, reader in self._readers.items()}
        return "; ".join(f"{name}: {where}" if name else where for name, where in told.items())

    @property
    def n_bytes_read(self) -> int:
        """Of tokens, from all stores."""
        return sum(reader.n_bytes_read for reader in self._readers.values())

    def step(self, rows_U2: np.ndarray) -> dict[str, StepRows]:
        """The rows of a step by store; of each, from the first one that is used, all are on their
        way."""
        return {
            name: reader.step(self._stores[name].stored(rows_U2))
            for name, reader in self._readers.items()
        }

    def expect(self, rows_U2: np.ndarray) -> None:
        """Hint which rows the next step will want."""
        for name, reader in self._readers.items():
            reader.expect(self._stores[name].stored(rows_U2))
