"""The contest's five masses, written out a second time."""

from featurestore.photos.targets import CSIRO
from trainer.score.metrics import Score

TARGETS = ("Dry_Green_g", "Dry_Dead_g", "Dry_Clover_g", "GDM_g", "Dry_Total_g")
"""In the order of tables."""
WEIGHTS = (0.1, 0.1, 0.1, 0.2, 0.5)
MASSES = ("Dry_Total_g", "GDM_g", "Dry_Green_g", "Dry_Dead_g", "Dry_Clover_g")
"""In the order of heads."""
IN_TABLES = [MASSES.index(name) for name in TARGETS]
BY = Score("contest", WEIGHTS)


def csiro(states=()):
    """The preset with the words of its State."""
    return CSIRO.with_values({"State": list(states)})
