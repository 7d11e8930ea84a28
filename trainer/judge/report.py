"""Pictures of a sweep: training curves of a run, the leaderboard beside the baselines."""

import functools
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from featurestore.disk.durable import appears_whole
from trainer.score.metrics import Score

SCORE_NAMES = {
    "contest": "weighted R2",
    "r2": "mean R2",
    "rmse": "RMSE",
    "mae": "mean absolute error",
    "log_loss": "log-loss",
    "accuracy": "accuracy",
}
BASELINES = {"mean": "#9a9a9a", "ridge": "#d08a2e", "logistic": "#7a6bb0"}
BLUE = "#2f6d8f"
PALE = "#a9c6d5"
NOTE_CHARACTERS = 150  # as wide as the picture
MOST_BARS = 40  # more cannot be read on a page


def draw_curves(metrics: Path, out: Path, by: Score) -> None:
    """Loss and held-out score by epoch from metrics.jsonl, each fold pale, their mean in full."""
    lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    figure, axes = _curves_figure(SCORE_NAMES[by.name])
    panels = (("loss", "mean"), ("score", "all folds pooled"))
    for ax, (key, label) in zip(axes, panels, strict=True):
        for old in list(ax.lines):
            old.remove()
        folds = np.array([line[f"fold_{key}"] for line in lines], float)
        ax.plot(folds, color=PALE, linewidth=0.8)
        pooled = [line[key] for line in lines]
        ax.plot(pooled, color=BLUE, linewidth=1.8, label=label)
        ax.legend(frameon=False)
        ax.relim()
        ax.autoscale()
    # of the scores, which the loop above drew last
    is_known = np.isfinite(folds).any()
    # the first epochs may be far worse; the end is what matters
    if by.larger_is_better:
        low = np.nanpercentile(folds, 25) if is_known else 0
        axes[1].set_ylim(max(-0.5, min(low - 0.3, 0)), 1)
    elif is_known:
        axes[1].set_ylim(0, max(1.5 * np.nanpercentile(folds, 75), 1e-9))
    _save(figure, out)


@functools.cache
def _curves_figure(score: str):
    """The panels of `draw_curves`, with the lines that were drawn last: there is a picture a point,
    and to make axes takes a third of its time."""
    figure, axes = _figure(1, 2, (10, 3.6), None)
    # to look for a layout takes as long as to draw
    figure.subplots_adjust(left=0.065, right=0.985, bottom=0.14, top=0.91, wspace=0.16)
    titles = ("training loss", f"held-out score ({score}, view 0)")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, y=1)  # where it lies anyway, without a search for its place
        ax.set_xlabel("epoch")
        ax.ticklabel_format(axis="y", scilimits=(-3, 4))  # wider numbers do not fit
        ax.grid(alpha=0.3)
    return figure, axes


def draw_leaderboard(
    summary: pd.DataFrame,
    out: Path,
    by: Score,
    notes: Sequence[str] = (),
) -> None:
    """Points by score, best at the top, with the sd over repeats; baselines as lines.

    Pale bars are told apart from the best.
    """
    points = summary[~summary["name"].isin(BASELINES)].head(MOST_BARS)
    points = points.iloc[::-1]  # bars are drawn from the bottom up
    lines = []
    for note in notes:
        lines += textwrap.wrap(note, NOTE_CHARACTERS)
    inches = 1.6 + 0.34 * len(points) + 0.2 * len(lines)
    figure, ax = _figure(1, 1, (10, inches), "constrained")
    height = np.arange(len(points))
    apart = points["apart"].to_numpy(bool) | points["failed"].to_numpy(bool)
    for these, colour, label in (
        (~apart, BLUE, "not told apart from the best"),
        (apart, PALE, "told apart from it (95 %)"),
    ):
        if these.any():
            ax.barh(
                height[these],
                points["score_last"][these],
                xerr=points["sd_last"].fillna(0)[these],
                color=colour,
                height=0.6,
                label=f"last epoch (EMA), {label}",
            )
    if "score_best" in points:  # regressors alone have no epochs
        ax.plot(
            points["score_best"],
            height,
            "|",
            color="black",
            markersize=11,
            label="best epoch (optimistic)",
        )
    for name, colour in BASELINES.items():
        # it may have been left out, or tell nothing of what ranks
        for value in summary.loc[summary["name"] == name, "score_last"].dropna():
            ax.axvline(value, color=colour, linestyle="--", label=f"{name} {value:.3f}")
    for y, value in zip(height, points["score_last"], strict=True):
        # inside the bar; a point that failed has none
        text, colour = (f" {value:.3f}", "white") if np.isfinite(value) else (" failed", "black")
        ax.text(0.004, y, text, va="center", fontsize=9, color=colour)
    names = points["name"].str.replace("__", "  ").tolist()
    ax.set_yticks(height, names, fontsize=8)
    told = f"{SCORE_NAMES[by.name]} over all images and targets"
    if not by.larger_is_better:
        told += "; smaller is better"
    ax.set(xlabel=f"out-of-fold score ({told})", title="leaderboard")
    lowest = np.nanmin(points["score_last"].to_numpy(float), initial=0)
    ax.set_xlim(left=min(0, lowest))
    figure.legend(
        frameon=False,
        fontsize=8,
        loc="outside lower center",
        ncols=5,
        title="\n".join(lines),
        title_fontsize=8,
    )
    _save(figure, out)


def _figure(rows: int, columns: int, size: tuple[float, float], layout: str | None):
    """A figure outside pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(size, layout=layout, dpi=110)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def _save(figure, out: Path) -> None:
    # without matplotlib's version in it, so that equal pictures are equal files
    with appears_whole(out) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})
