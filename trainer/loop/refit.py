"""What a sweep chose, trained once more on every image: a run for each member, in `refit/NAME`."""

from dataclasses import dataclass
from pathlib import Path

from trainer.config.sections import PointConfig
from trainer.data.stream import everything
from trainer.heads import kinds
from trainer.loop.baselines import BASELINES
from trainer.loop.blend_folder import save_blend
from trainer.loop.fits import baseline_alone
from trainer.loop.prepare import Sweep
from trainer.loop.runs import ALL_FILE, SUMMARY, RunFolder, SweepFolder, read_json


@dataclass(frozen=True)
class RefitMember:
    """One member of what the sweep chose, and where it is trained on every image."""

    name: str
    share: float
    sweep: Sweep
    """Whose point it is: the sweep, or for a baseline beside its board one of that alone."""
    p: int
    """Position of the point in that sweep."""
    run: RunFolder
    checkpoint: Path

    @property
    def config(self) -> PointConfig:
        return self.sweep.config.points[self.p]

    @property
    def is_trained(self) -> bool:
        """By steps, as heads are; regressors are fitted."""
        return kinds.load(self.config.head.kind).trained

    @property
    def is_done(self) -> bool:
        return (self.run.path / "weights" / ALL_FILE.format(which="last")).exists()

    @property
    def whole(self) -> Sweep:
        """The sweep with one split, which holds nothing out."""
        data = self.sweep.data
        split = everything(data.n_images, self.sweep.base.cv.n_folds)
        return Sweep.of(self.sweep.config, data, self.sweep.folds, [split])


def chosen_shares(folder: SweepFolder) -> dict[str, float]:
    """Names of what a finished sweep chose, and the share of each; without those that have none.

    Sweeps of before there were blends chose their best point. Empty where all failed.
    """
    summary = read_json(folder.path / SUMMARY, "best")
    chosen = summary.get("chosen")
    if chosen:
        shared = zip(chosen["members"], chosen["shares"], strict=True)
        return {name: share for name, share in shared if share > 0}
    return {summary["best"]: 1.0} if summary["best"] else {}


def refit_members(sweep: Sweep, folder: SweepFolder) -> list[RefitMember]:
    """What is to be trained on every image. A refit that was begun before there were blends goes on
    in `refit` itself, as the best point alone."""
    shares = chosen_shares(folder)
    is_of_before = (folder.refit.path / "config.yaml").exists()
    if is_of_before:
        best = read_json(folder.path / SUMMARY, "best")["best"]
        shares = {best: 1.0}

    members = []
    for name, share in shares.items():
        # a baseline is no point of the grid: it is the only one of a sweep of its own
        own = baseline_alone(sweep, name) if name in BASELINES else sweep
        p = 0 if name in BASELINES else sweep.config.names.index(name)
        run = folder.refit if is_of_before else RunFolder(folder.refit.path / name)
        checkpoint = folder.checkpoint("refit" if is_of_before else f"refit_{name}")
        members.append(RefitMember(name, share, own, p, run, checkpoint))
    return members


def end_refit(folder: SweepFolder, members: list[RefitMember]) -> None:
    """Say what belongs together; last, since a refit with it is whole."""
    if members[0].run.path != folder.refit.path:
        names = [member.name for member in members]
        shares = [member.share for member in members]
        save_blend(folder.refit.path, names, shares)
