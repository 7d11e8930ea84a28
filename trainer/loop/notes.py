"""What a part of a sweep came to, on disk until the sweep is finished: arrays, and plain values
about them, in one file.

A note lies among the checkpoints: one for each regressor, one for each pass over the tokens.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from featurestore.disk.durable import appears_whole, crc32c
from featurestore.disk.tensor_file import save_tensors
from featurestore.errors import InputError, MismatchError
from trainer.loop.checkpoint import check_identity, check_saved, checksum, opened, whole_metadata
from trainer.loop.identity import Identity
from trainer.loop.runs import RunFolder


class Note:
    """A file that appears whole, and belongs to the points, labels, folds and tokens of an
    identity."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(
        self,
        arrays: Mapping[str, np.ndarray],
        about: Mapping[str, Any],
        identity: Identity,
    ) -> None:
        """InputError if it cannot be written. about : as JSON holds it."""
        state = {}
        for name, array in arrays.items():
            state[name] = torch.from_numpy(np.ascontiguousarray(array))
        # as a tensor, so that the checksum sees a flipped bit
        text_bytes = list(json.dumps(about).encode())
        state["about"] = torch.tensor(text_bytes, dtype=torch.uint8)
        text = identity.to_json()
        self.path.parent.mkdir(exist_ok=True)
        try:
            with appears_whole(self.path) as partial:
                crc = checksum(sorted(state.items()), text)
                save_tensors(state, partial, {"crc32c": crc, "identity": text})
        except (OSError, SafetensorError) as err:
            raise InputError(
                f"{self.path}: cannot be written ({err}); make room, then --resume the sweep"
            ) from err

    def check(self, identity: Identity) -> None:
        """MismatchError if it is of other settings, or of other labels, folds or tokens."""
        check_saved(self.path, identity)

    def load(self, identity: Identity) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Arrays and what is told about them; None if nothing was noted, or it is damaged.

        MismatchError as by `check`.
        """
        try:
            with opened(self.path) as file:
                metadata = whole_metadata(file)
                if not check_identity(self.path, metadata, identity):
                    return None
                arrays = {}
                for name in file.keys():  # noqa: SIM118
                    arrays[name] = file.get_tensor(name).numpy().copy()
                return arrays, json.loads(arrays.pop("about").tobytes())
        except MismatchError:
            raise
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            return None


def head_crc32c(run: RunFolder, file: str) -> int:
    """Of a head's file, as a note keeps it."""
    return crc32c((run.path / "weights" / file).read_bytes())


def are_whole(files: Mapping[str, int], run: RunFolder) -> bool:
    """Whether heads that were noted are there as they were saved."""
    with suppress(OSError):
        return all(head_crc32c(run, file) == crc for file, crc in files.items())
    return False
