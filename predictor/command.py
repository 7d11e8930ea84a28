"""The commands `biomass predict`, which is `python -m predictor` too, and `biomass demo`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.commands.checks import check_devices, check_weights_there
from featurestore.commands.completion import offered, offered_devices
from featurestore.commands.next_steps import biomass, build_first, say_next
from featurestore.commands.options import (
    ANY,
    FOLDER,
    HELP,
    allow_outside_option,
    csv_option,
    engine_option,
    former_name,
    max_pixels_option,
    precision_option,
    split_numbers,
)
from featurestore.commands.reporting import JSON, QUIET, is_set, script_options, tell
from featurestore.commands.running import one_line_errors, with_same_command
from featurestore.disk import messages
from featurestore.disk.durations import parse_duration
from featurestore.disk.imports import quick_imports
from featurestore.errors import UsageError
from featurestore.photos.view_names import tta_names
from predictor.checks import (
    check_file_name,
    check_level,
    check_new,
    check_oof_alone,
    check_sources,
    parse_part,
)

if TYPE_CHECKING:
    from predictor.predicted import Predicted


# `python -m predictor` has no group above it that would say so
@click.command(context_settings=HELP)
@click.option(
    "--data",
    required=True,
    type=FOLDER,
    help="Folder with test.csv and its photographs.",
)
@csv_option("test.csv")
@click.option(
    "--out",
    type=ANY,
    help="Where the submission goes.  [submission.csv; of other targets than the contest's "
    "predictions.csv; with --oof oof_predictions.csv]",
)
@click.option(
    "--run",
    multiple=True,
    type=FOLDER,
    help="A run's folder; given several times, an ensemble.",
)
@click.option(
    "--sweep",
    type=FOLDER,
    help="A sweep's folder: what it chose.  [the one under runs/ that finished last]",
)
@click.option(
    "--point",
    help="A row of the sweep's board by its name or how that begins, or best, the best point of "
    "its grid.  [what it chose]",
)
@click.option("--bundle", type=FOLDER, help="A bundle's folder, which is checked first.")
@click.option(
    "--allow-partial",
    is_flag=True,
    help="Go without a bundle's heads that are missing or damaged.",
)
@click.option("--only-folds", help="Heads of these folds only, e.g. 0,2.  [all]")
@former_name("--folds", "--only-folds", "only_folds")
@click.option(
    "--epoch",
    "weights",
    type=click.Choice(["best", "last"]),
    help="Which epoch's heads.  [last, or a bundle's own]",
)
@former_name("--weights", "--epoch", "weights")
@click.option(
    "--tta",
    shell_complete=offered("1", "2", "4", "8"),
    help="Views to average: 1, 2, 4 or 8, or names with commas.  [4]",
)
@click.option(
    "--average",
    type=click.Choice(["mean", "median"]),
    help="Over views and heads.  [mean]",
)
@click.option(
    "--constraints",
    type=click.Choice(["order", "clip"]),
    help="How sums are made to hold.  [the run's]",
)
@click.option(
    "--backbone-weights",
    help="FILE.safetensors, or random.  [those the store was built with]  For heads that learned "
    "from an imported store of unknown weights, a FILE that you know to be the right one.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    shell_complete=offered_devices,
    help="auto, cpu, cuda, cuda:N; several with commas.",
)
@precision_option("Of the backbone.  [the store's]")
@click.option(
    "--on-error",
    type=click.Choice(["fail", "mean"]),
    help="mean: the training mean for photographs that cannot be used, exit code 6.  [fail]",
)
@allow_outside_option()
@max_pixels_option
@click.option("--deadline", help="Time from now, e.g. 8h30m: fewer views rather than overrun.")
@click.option(
    "--continue",
    "resume",
    is_flag=True,
    help="Take up what a stopped prediction of this output had finished.",
)
@former_name("--resume", "--continue", "resume", is_flag=True)
@click.option(
    "--interval",
    type=float,
    metavar="LEVEL",
    help="e.g. 0.9: adds intervals to the wide table that cover 90 % of a new site's photographs.",
)
@click.option(
    "--blend",
    type=click.Choice(["equal", "fitted"]),
    help="An ensemble's weights; fitted on the out-of-fold tables, whose gain is printed.  [equal, "
    "or the bundle's]",
)
@click.option(
    "--oof",
    is_flag=True,
    help="The training photographs instead, by the heads that held them out; exit code 5 unless "
    "oof.csv says the same.",
)
@click.option(
    "--explain",
    type=ANY,
    help="A folder for a picture per photograph, with maps, and report.html with all.",
)
@click.option(
    "--part",
    metavar="N/OF",
    help="Only this part of the photographs, counted from 0, e.g. 3/16; --out is the folder of all "
    "parts.",
)
@click.option(
    "--merge",
    type=FOLDER,
    metavar="PARTS",
    help="Write what the parts in this folder predicted.",
)
@engine_option
@click.option(
    "--parts",
    "n_parts",
    type=click.IntRange(min=1),
    help="With --engine: how many.  [one for each 1000 photographs, at least 8]",
)
@script_options
def predict(
    only_folds: str | None,
    out: Path | None,
    oof: bool,
    part: str | None,
    merge: Path | None,
    engine: str | None,
    n_parts: int | None,
    **options: Any,
) -> None:
    """Predict the masses of photographs, end to end.

    For example: `biomass predict --tta 4 --data data`. With --out NAME.csv the wide table goes to
    NAME.predictions.csv, by default to predictions.csv.

    In parts, on one machine or many: `--part 0/16 --out P` to `--part 15/16 --out P`, then
    `--merge P --data data`.
    """
    with one_line_errors(with_same_command("--continue")):
        folds = split_numbers("--only-folds", only_folds, "0,2")
        if bool(part) + bool(merge) + bool(engine) > 1:
            raise UsageError(
                "give one of --part, --merge and --engine: parts are predicted first, then merged; "
                "an engine does both"
            )
        if n_parts and not engine:
            raise UsageError("--parts goes with --engine; without one give --part 0/16, and so on")
        if part:
            parse_part(part)
        is_whole = not (part or merge or engine)
        _check(None if part else out, oof and is_whole, **options)
        # below the checks: a mistake in the options must not wait for torch
        with quick_imports():
            from featurestore.disk.messages import say
            from predictor.end_to_end import predict_files
            from predictor.options import PredictOptions
            from predictor.predicted import Predicted

        asked = PredictOptions(out=out, oof=oof, folds=folds, **options)
        if engine:
            from predictor.on_engine import predict_on_engine

            predicted = predict_on_engine(engine, n_parts, asked, say)
        elif merge:
            from predictor.parts import merge_parts

            predicted = merge_parts(merge, asked, say)
            say(f"{merge}: all its parts are merged; it may be removed")
        elif part:
            from predictor.parts import predict_part

            predicted = Predicted(predict_part(part, asked, say))
        else:
            predicted = predict_files(asked, say)
        tell(predicted, predicted.values())
        say_next(predicted.told(), label="written")
        if part:
            whole = biomass("predict", "--merge", out, "--data", asked.data)
            say_next(whole, label="when all parts are there")
        elif predicted.n_photographs:
            _say_page(predicted, asked.data)
        sys.exit(predicted.code)


def _say_page(predicted: "Predicted", data: Path) -> None:
    """How to look at predictions on the page; `python -m predictor` may be where there is none."""
    name = click.get_current_context().find_root().info_name or ""
    if name.startswith("python -m"):
        return
    serve = ["store", "serve", "--predictions", predicted.wide or predicted.path, "--data", data]
    if predicted.pictures:
        serve += ["--explain", predicted.pictures.parent]
    say_next(biomass(*serve), label="look")


CHOSEN_BY_RUNS = (
    *("tta", "average", "constraints", "on_error"),
    *("deadline", "interval", "blend", "explain"),
)
"""Options that --oof takes from the run."""


def _check(out: Path | None, oof: bool, **options: Any) -> None:
    """All that can be seen of the options alone."""
    sources = ("run", "sweep", "bundle", "point")
    check_sources(*[options[name] for name in sources])
    if oof:
        chosen = {name: options[name] for name in CHOSEN_BY_RUNS}
        check_oof_alone(**chosen)
    else:
        check_file_name(out)
    if options["tta"]:
        tta_names(options["tta"], "--tta")
    if options["deadline"]:
        parse_duration(options["deadline"])
    check_level(options["interval"])
    check_devices(options["device"])
    check_weights_there("--backbone-weights", options["backbone_weights"])


@click.command()
@click.option(
    "--out",
    default="demo",
    show_default=True,
    type=ANY,
    help="Where everything goes; must not exist.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=int,
    help="Another seed, other photographs.",
)
@click.option(
    "--task",
    type=click.Choice(["pasture", "other"]),
    default="pasture",
    show_default=True,
    help="The contest's five masses, or other targets: a yield, an NDVI and a crop.",
)
@click.option("--passes", type=click.IntRange(min=1), help="Passes of the sweep.  [one]")
@click.option(
    "--engine",
    type=click.Choice(["ray"]),
    help="Do it on three Ray nodes of this machine, two of which are killed at work, in 3 passes.",
)
@script_options
def demo(out: Path, seed: int, task: str, passes: int | None, engine: str | None) -> None:
    """Run the whole path once on a drawn pasture, or on drawn fields.

    Draw photographs, build a store, train a sweep, predict unseen sites and score them; then again
    by a bundle, of the pasture with pictures.
    """
    with one_line_errors():
        check_new(out)
        if task == "other" and (passes or engine):
            raise UsageError("--passes and --engine go with --task pasture")
        # a person reads every step; a program wants the result alone
        say = messages.say if is_set(JSON) or is_set(QUIET) else click.echo
        if task == "other":
            from predictor.other_demo import run_other_demo

            report = run_other_demo(out, seed, say=say)
        else:
            from predictor.demo import run_demo

            if engine:
                from predictor.demo_nodes import three_nodes

                with three_nodes(say) as nodes:
                    report = run_demo(out, seed, say=say, passes=passes or 3, nodes=nodes)
            else:
                report = run_demo(out, seed, say=say, passes=passes)
        tell(report, report.values())
        _say_next(out)


def _say_next(demo: Path) -> None:
    """How to look at what a demo made, and how to begin with photographs of one's own."""
    (sweep,) = (demo / "runs").iterdir()
    serve = ["store", "serve", demo / "features.h5", "--sweep", sweep, "--data", demo / "data"]
    say_next(biomass(*serve), label="look")
    say_next(build_first("data"), label="with photographs of your own in data")
