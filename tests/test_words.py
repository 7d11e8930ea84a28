"""One word, one thing: names of files, functions and classes use the glossary of docs/design.md."""

import ast
import re
from pathlib import Path

import click
import pytest

from cli import main
from trainer.config.reference import reference

ROOT = Path(__file__).parent.parent
PACKAGES = ("featurestore", "trainer", "predictor", "service")

USE_INSTEAD = {
    "sample": "image, or row",
    "samples": "images, or rows",
    "aug": "view",
    "backend": "source",
    "job": "part, or run",
    "loader": "stream, or reader",
    "classifier": "head",
    # words that leave a stranger guessing what a file or function holds
    "asked": "what was requested: rows, views, ranges",
    "bare": "what is missing, or what is left",
    "heat": "norms, similarity",
    "impatient": "time limits",
    "look": "overview, describe",
    "odd": "unusual, outliers",
    "plain": "what the value is: a JSON value, an ASCII text, an error of ours",
}

NAMES_THAT_STAY = {
    # YAML loaders and classifiers are what the libraries call them
    "featurestore/disk/yaml.py:_PlainLoader",
    "featurestore/backbone/weights.py:_without_classifier",
}

NAMES_TO_RENAME = {
    "featurestore/commands/running.py:plain_errors",
    "featurestore/disk/json_values.py:plain",
    "featurestore/manage/archive.py:_plain_os_errors",
    "featurestore/manage/extend.py:_plain",
    "featurestore/photos/catalog.py:_plain_id",
    "featurestore/photos/catalog.py:plain_path",
    "featurestore/read/rows.py:asked_views",
    "featurestore/write/build.py:BuildJob",
    "featurestore/write/writer.py:_plain_os_errors",
    "predictor/bundle/bare.py",
    "predictor/bundle/bare.py:predict_bare",
    "predictor/extras/explain.py:_look",
    "predictor/extras/picture.py:_plain",
    "predictor/members/submission.py:asked_rows",
    "service/app.py:_plain",
    "service/asked.py",
    "service/heat.py",
    "service/heat.py:_heat",
    "service/impatient.py",
    "service/impatient.py:ImpatientProtocol",
    "service/look.py",
    "service/odd.py",
    "service/odd.py:odd",
    "service/odd.py:odd_rows",
    "service/pages.py:odd",
    "service/ranges.py:asked_ranges",
    "trainer/data/stored_row.py:_plain_of",
    "trainer/data/stream.py:_samples",
    "trainer/loop/results.py:_plain",
}
"""Only ever shrinks. Remove a line when its name is gone."""

PUBLIC_KEYS_THAT_STAY = {
    "experiment.name": "names the sweep",
    "dataset.num_aug_patterns": "number of views",
    "dataset.img_size": "side of a tile",
    "head.features": "pooled vectors",
    "cv.groups": "sites, or States",
    "cv.n_folds": "folds of a repeat",
}
PUBLIC_OPTIONS_THAT_STAY = {
    "--crop": "how a photograph becomes tiles",
    "--relabel": "take other targets",
    "--tta": "number of views to average",
}
PUBLIC_COLUMNS_THAT_STAY = {
    "sample_id": "(image, target), as the contest writes it",
    "Sampling_Date": "a part of the site",
}


def names() -> set[str]:
    """path:name of each function and class; path of each file."""
    paths = [ROOT / "cli.py"]
    for package in PACKAGES:
        paths += (ROOT / package).rglob("*.py")

    found = set()
    for path in paths:
        place = path.relative_to(ROOT).as_posix()
        found.add(place)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(f"{place}:{node.name}")
    return found


def words(name: str) -> set[str]:
    """The words of the last part: `a/b_c.py:DefGhi` is def and ghi, `a/b_c.py` is b and c."""
    last = name.removesuffix(".py").split("/")[-1].split(":")[-1]
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", last)}


def test_new_names_use_the_glossary():
    wrong = {name for name in names() if words(name) & USE_INSTEAD.keys()}
    new = sorted(wrong - NAMES_THAT_STAY - NAMES_TO_RENAME)
    for name in new:
        for word in sorted(words(name) & USE_INSTEAD.keys()):
            print(f"{name}: in place of {word!r} use: {USE_INSTEAD[word]}")
    assert not new


def test_the_list_of_names_to_rename_shrinks():
    gone = NAMES_TO_RENAME - names()
    assert not gone, f"remove from NAMES_TO_RENAME: {sorted(gone)}"


def test_public_names_that_stay_are_public():
    keys = set(re.findall(r"^\| `([\w.]+)` \|", reference(), re.MULTILINE))
    assert PUBLIC_KEYS_THAT_STAY.keys() <= keys
    assert PUBLIC_OPTIONS_THAT_STAY.keys() <= options(main)
    told = (ROOT / "docs/build.md").read_text()
    assert all(f"`{column}`" in told for column in PUBLIC_COLUMNS_THAT_STAY)


def options(command: click.Command) -> set[str]:
    found = {option for parameter in command.params for option in parameter.opts}
    for below in getattr(command, "commands", {}).values():
        found |= options(below)
    return found


@pytest.mark.parametrize(
    "name, its_words",
    [
        ("trainer/data/stored_row.py", {"stored", "row"}),
        ("trainer/data/x.py:_HeadBank", {"head", "bank"}),
    ],
)
def test_words_of_a_name(name, its_words):
    assert words(name) == its_words
