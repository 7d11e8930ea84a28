"""`predict --oof`: the training photographs, each by the heads that held it out, beside what the
sweep wrote of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from featurestore.counts import count_of
from featurestore.disk.durable import write_whole
from featurestore.disk.tables import find_table
from featurestore.errors import InputError, MismatchError, UsageError, list_some
from featurestore.format.spec import ViewSpec
from featurestore.photos.catalog import read_catalog
from featurestore.photos.find import find_photographs, spelled_as
from predictor.members.combine import Combiner
from predictor.members.member import Member, Raw, read_oof, true_names
from predictor.members.oof import score_of
from predictor.members.submission import can_write
from predictor.predictor import Predictor
from trainer.loop.blend_folder import shares_of

TOLERANCE = {"rtol": 1e-4, "atol": 1e-3}
"""Of a mass, and grams. On one device, precision and versions tokens are bit-equal, and what is
left is float32's rounding: heads are asked for a photograph and all its views at once, where the
sweep asked for a batch of photographs and one view, so products are summed in another order. On the
demo that is up to 6e-5 g; a backbone in fp16 where the store's was fp32 makes 0.04 g, one in bf16
0.3 g, with scores .0001 to .0002 away."""


def check_oof(
    predictor: Predictor,
    data: Path,
    out: Path,
    say: Callable[[str], object],
    resume: bool = False,
    allow_outside: bool = False,
    blend: Path | None = None,
    csv: Path | None = None,
) -> None:
    """Write the table of `out_of_fold`; MismatchError unless it agrees with oof.csv."""
    if not predictor.members[0].targets.n_predicted:
        raise UsageError("--oof compares numbers, and these heads predict classes alone")
    known, source = _known(predictor, blend)
    views = scored_views(predictor.members[0])
    kept = predictor.journal(out.with_name(out.name + ".progress"), views, resume)
    table = out_of_fold(predictor, data, allow_outside, blend, csv, kept=kept, say=say)
    with can_write(out):
        write_whole(out, table.to_csv(index=False))
    kept.close()
    first = predictor.members[0]
    names = list(first.targets.names)
    ours_NK, theirs_NK = (each[names].to_numpy(float) for each in (table, known))
    apart_K = np.abs(ours_NK - theirs_NK).max(0, initial=0)
    unit, unit_g = (" in grams", " g") if first.targets.preset else ("", "")
    greatest = [f"{name} {apart:.2g}" for name, apart in zip(names, apart_K, strict=True)]
    say(
        f"{count_of(len(table), 'row')} of {count_of(table['image_id'].nunique(), 'photograph')}, "
        f"{count_of(len(views), 'view')}, beside {source}\n"
        f"greatest difference{unit}: {', '.join(greatest)}\n"
        f"score: {score_of(first, table):.6f} predicted, "
        f"{score_of(first, known):.6f} in oof.csv"
    )
    if not np.allclose(ours_NK, theirs_NK, **TOLERANCE):
        raise MismatchError(
            f"{out}: up to {apart_K.max():.3g}{unit_g} from oof.csv, more than "
            f"{TOLERANCE['atol']:g}{unit_g} and {TOLERANCE['rtol']:g} of the value; photographs, "
            "heads or weights have changed, or device, precision or versions are not those of the "
            "store and the sweep"
        )


def out_of_fold(
    predictor: Predictor,
    data: Path,
    allow_outside: bool = False,
    blend: Path | None = None,
    csv: Path | None = None,
    **options,
) -> pd.DataFrame:
    """Rows as `held_out_rows`, targets predicted anew from the photographs of data/train.csv as the
    sweep scored its heads.

    That is: averaged over the views of `scored_views`, constrained and ruled as the run says.
    allow_outside : also take photographs that are not below `data`. blend : folder of the blend
    that the predictor's members are, if they are one: heads of a split are averaged by the shares
    that were learned without it. csv : the table instead of train.csv. options : of
    `Predictor.raws`.
    """
    members = predictor.members
    known, _ = _known(predictor, blend)
    photographs = _photographs(data, csv or data / "train.csv", known, allow_outside)
    raw_NM = predictor.raws(photographs, scored_views(members[0]), sealed=True, **options)

    # what all heads say was computed once; of each row the heads that held it out are picked
    combiners = {}
    values = []
    for row in known.itertuples():
        split = (row.repeat, row.fold)
        # of each split its own: a blend's shares were learned without what it holds out
        if split not in combiners:
            shares = shares_of(blend, *split) if blend else [1.0]
            weighing = []
            for member, share in zip(members, shares, strict=True):
                weighing.append(member.weighing(share))
            combiners[split] = Combiner(weighing)

        by_head = []
        for member, raw in zip(members, raw_NM[row.image_id], strict=True):
            head = member.splits.index(split)
            word_1VC = None if raw.word_HVC is None else raw.word_HVC[[head]]
            by_head.append(Raw(raw.values_HVK[[head]], word_1VC))
        values.append(combiners[split].values(by_head))
    names = members[0].targets.names
    columns = np.reshape(values, (-1, len(names))).T
    return known.assign(**dict(zip(names, columns, strict=True)))


def held_out_rows(member: Member) -> pd.DataFrame:
    """The rows of oof.csv whose heads the member has: weights, repeat, image_id, site, fold,
    targets, truths."""
    _require_folds(member)
    return _rows_of(member, member.oof)


def _known(predictor: Predictor, blend: Path | None) -> tuple[pd.DataFrame, Path]:
    """The rows that a prediction is compared with, and the file they are in."""
    first = predictor.members[0]
    if blend is None:
        return held_out_rows(_only(predictor)), find_table(first.run.path / "oof.csv")
    if any(member.weights != "last" for member in predictor.members):
        raise InputError(
            f"{blend}: blends were scored by last weights alone; leave --epoch best out, or "
            "choose one run with --point"
        )
    _require_folds(first)
    path = find_table(blend / "oof.csv")
    return _rows_of(first, read_oof(path, "last", first.targets)), path


def _require_folds(member: Member) -> None:
    """InputError for a refit."""
    if None in member.splits:
        raise InputError(
            f"{member.name}: its head learned on every image, none was held out; choose a run of "
            "the sweep's points"
        )


def _rows_of(member: Member, oof: pd.DataFrame) -> pd.DataFrame:
    """Rows of an out-of-fold table whose heads a member has."""
    splits = pd.MultiIndex.from_frame(oof[["repeat", "fold"]])
    rows = oof[splits.isin(member.splits)].reset_index(drop=True)
    targets = member.targets
    about = ["weights", "repeat", "image_id", "site", "fold"]
    return rows[[*about, *targets.names, *true_names(targets)]]


def scored_views(member: Member) -> list[ViewSpec]:
    """The stored views that the sweep averaged when it scored finished heads."""
    config, views = member.config, member.spec.tokens.views
    numbers = config.inference.tta_indices if config.cv.tta else [0]
    return [views[number] for number in numbers]


def _only(predictor: Predictor) -> Member:
    if len(predictor.members) > 1:
        raise InputError(
            f"--oof compares one run with its oof.csv; {len(predictor.members)} were given, "
            "choose one --run"
        )
    return predictor.members[0]


def _photographs(
    data: Path,
    table: Path,
    known: pd.DataFrame,
    allow_outside: bool,
) -> dict[str, Path]:
    """Photographs of the rows, by id; InputError listing those that the table does not have."""
    frame = read_catalog(table)
    frame["image_id"] = spelled_as(frame["image_id"], known["image_id"])
    if absent := sorted(set(known["image_id"]) - set(frame["image_id"])):
        raise InputError(
            f"{table}: lacks {count_of(len(absent), 'image')} that the run held out; give the "
            f"data its store was built from:{list_some(absent)}"
        )
    frame = frame[frame["image_id"].isin(known["image_id"])]
    paths = find_photographs(frame, data, allow_outside, allow="--allow-outside")
    return dict(zip(frame["image_id"], paths, strict=True))
