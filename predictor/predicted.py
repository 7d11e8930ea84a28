"""What a prediction wrote."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from featurestore.counts import count_of
from featurestore.errors import IN_PART


@dataclass(frozen=True)
class Predicted:
    """Files of a prediction, and photographs that it could not use."""

    path: Path
    """The submission; where none is asked for, the wide table."""
    wide: Path | None = None
    """The wide table beside a submission."""
    n_photographs: int | None = None
    unusable: Mapping[str, str] = field(default_factory=dict)
    """Why photographs got the training mean, by id."""
    pictures: Path | None = None
    """report.html of --explain."""

    @property
    def code(self) -> int:
        """The exit code: 0, or IN_PART where some photographs could not be used."""
        return IN_PART if self.unusable else 0

    def told(self) -> str:
        """What was written, in a line."""
        files = [str(self.path)]
        if self.wide:
            files.append(str(self.wide))
        if self.pictures:
            files.append(str(self.pictures))
        counted = f": {count_of(self.n_photographs, 'photograph')}" if self.n_photographs else ""
        return f"{', '.join(files)}{counted}"

    def values(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def __str__(self) -> str:
        return str(self.path)
