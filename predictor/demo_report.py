"""What a demo made, and how well it predicts photographs that its heads never saw."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurestore.disk.durations import duration


@dataclass(frozen=True)
class DemoReport:
    scored: str
    """Which scores these are."""
    scores: dict[str, float]
    by_bundle: bool
    """Whether the bundle's own wheel predicts the same numbers."""
    made: dict[str, Path]
    """Files and folders by what they are."""
    seconds: float

    def values(self) -> dict[str, Any]:
        """What `--json` prints."""
        told = {"scores": self.scores, "by_bundle": self.by_bundle}
        return {**told, **self.made, "seconds": self.seconds}

    def __str__(self) -> str:
        scores = ", ".join(f"{name} {value:.3f}" for name, value in self.scores.items())
        lines = [f"{self.scored}: {scores}"]
        lines += [f"{name:12} {path}" for name, path in self.made.items()]
        return "\n".join([*lines, f"{duration(self.seconds)} in all"])
