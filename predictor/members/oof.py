"""Members' out-of-fold tables, side by side: what is known of their predictions for photographs
that their heads never saw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from featurestore.errors import InputError, list_some
from featurestore.photos.targets import Targets
from predictor.members.member import Member, true_names
from trainer.score.metrics import Score

SAME_G = 1e-6  # truths of one photograph differ by less, or the members learned other labels


@dataclass(frozen=True)
class OutOfFold:
    """Photographs that every member predicts out of fold, in order of their ids."""

    targets: Targets
    image_ids: list[str]
    site_N: np.ndarray
    truth_NK: np.ndarray
    """In the order of tables; NaN where unknown."""
    prediction_MNK: np.ndarray
    """Each member's, constrained, averaged over its repeats."""

    @classmethod
    def of(
        cls,
        members: Sequence[Member],
        note: Callable[[str], object] | None = None,
    ) -> "OutOfFold":
        """The members' tables on the same photographs.

        note : told where members have others too, and those are left out; without it that is
            refused.

        Raises InputError if they share none, disagree on a truth or site, or a head's prediction is
        not finite.
        """
        tables = [_averaged(member) for member in members]
        shared = sorted(set.intersection(*(set(table.index) for table in tables)))
        _check_shared(members, tables, shared, note)
        tables = [table.loc[shared] for table in tables]
        for member, table in zip(members[1:], tables[1:], strict=True):
            _check_agree(members[0], tables[0], member, table)
        targets = members[0].targets
        names = list(targets.names)
        prediction_MNK = np.array([table[names].to_numpy(float) for table in tables])
        truth_NK = tables[0][true_names(targets)].to_numpy(float)
        return cls(targets, shared, tables[0]["site"].to_numpy(), truth_NK, prediction_MNK)

    @property
    def unit(self) -> str:
        """What errs together, in a word."""
        is_alone = len(np.unique(self.site_N)) == len(self.site_N)
        return "photograph" if is_alone else "site"

    def combined(self, weight_M: Sequence[float]) -> np.ndarray:
        """(N, K) averaged over members by weight, as the ensemble averages what it predicts.

        Numbers whose sums hold are averaged, where the ensemble averages raw ones and constrains
        once: the sums hold either way.
        """
        return np.average(self.prediction_MNK, axis=0, weights=weight_M)


def without_table(members: Sequence[Member]) -> list[str]:
    """Names of members that have no out-of-fold table: those of a refit."""
    return [member.name for member in members if not member.has_oof]


def check_held_out(members: Sequence[Member], option: str) -> None:
    """InputError unless every member has an out-of-fold table, which `option` needs."""
    if lacking := without_table(members):
        raise InputError(
            f"{option} needs what heads predicted out of fold, and {', '.join(lacking)} has no "
            "oof.csv: heads of a "
            f"refit learned on every image. Leave {option} out, or predict with the sweep's points"
        )


def _averaged(member: Member) -> pd.DataFrame:
    """A row an image, by its id: site, targets averaged over repeats, truths."""
    oof = member.oof
    names = list(member.targets.names)
    both = names + true_names(member.targets)
    numbers = oof[both].apply(pd.to_numeric)
    is_finite = np.isfinite(numbers[names]).all(axis=1)
    if len(bad := oof["image_id"][~is_finite]):
        raise InputError(
            f"{member.name}: {len(bad)} out-of-fold predictions are not finite, a head failed; "
            f"choose another run:{list_some(bad.tolist())}"
        )
    table = pd.concat([oof[["image_id", "site"]], numbers], axis=1)
    by_image = table.groupby("image_id")
    return by_image[both].mean().join(by_image["site"].first())


def _check_shared(
    members: Sequence[Member],
    tables: Sequence[pd.DataFrame],
    shared: Sequence[str],
    note: Callable[[str], object] | None,
) -> None:
    """InputError or a note where members predict different photographs out of fold."""
    if all(len(table) == len(shared) for table in tables) and shared:
        return
    counts = []
    for member, table in zip(members, tables, strict=True):
        counts.append(f"{member.name} {len(table)}")
    found = (
        f"out-of-fold tables are of other photographs: {', '.join(counts)}, of which {len(shared)} "
        "are in all"
    )
    if note is None or not shared:
        raise InputError(f"{found}; train the runs on the same images, with every fold")
    note(f"{found} and count")


def _check_agree(first: Member, known: pd.DataFrame, other: Member, table: pd.DataFrame) -> None:
    """InputError unless truths and sites of the same photographs are the same."""
    names = true_names(first.targets)
    tolerance = {"rtol": SAME_G, "atol": SAME_G, "equal_nan": True}
    same_truth = np.isclose(known[names], table[names], **tolerance).all(1)
    # sites too: intervals, and what fitted weights gain, are counted by them
    same_site = (known["site"] == table["site"]).to_numpy()
    differ = table.index[~(same_truth & same_site)]
    if len(differ):
        raise InputError(
            f"{first.name} and {other.name} learned other truths or sites of {len(differ)} "
            "photographs; runs of one "
            f"ensemble must have the same labels:{list_some(differ.tolist())}"
        )


def score_of(member: Member, table: pd.DataFrame) -> float:
    """The score of numbers over each repeat's rows; the mean over repeats."""
    targets = member.targets
    by = Score.of(member.config.score, targets)
    if not any(by.weights[: targets.n_predicted]):  # classes alone are ranked
        by = Score("r2", (1.0,) * targets.n_predicted)
    by = replace(by, weights=by.weights[: targets.n_predicted])
    names = list(targets.names)
    truths = true_names(targets)
    numbers = table[[*names, *truths]].apply(pd.to_numeric)
    by_repeat = numbers.groupby(table["repeat"])
    scores = []
    for _, each in by_repeat:
        scores.append(by(each[truths].to_numpy(), each[names].to_numpy()))
    return float(np.mean(scores))
