"""One word, one thing: names of files, functions and classes use the glossary of docs/design.md."""

import ast
import re
from functools import cache
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
    "_PlainLoader",
    "without_classifier",
    "odd",  # the address odd.json is public
}

NAMES_TO_RENAME = {
    "_plain",
}
"""Only ever shrinks. Remove a line when its name is gone."""

PUBLIC_KEYS_THAT_STAY = {
    "experiment.name": "names the sweep",
    "dataset.num_aug_patterns": "number of views",
    "dataset.img_size": "side of a tile",
    "head.features": "pooled vectors",
    "cv.groups": "what is held out together: sites, or what shares columns",
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


@cache
def names() -> set[str]:
    """Names of functions, classes and files, the last with their suffix."""
    paths = [ROOT / "cli.py"]
    for package in PACKAGES:
        paths += (ROOT / package).rglob("*.py")

    found = set()
    for path in paths:
        found.add(path.name)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
    return found


def words(name: str) -> set[str]:
    """`b_c.py` is b and c, `DefGhi` is def and ghi."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name.removesuffix(".py"))}


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
    [("stored_row.py", {"stored", "row"}), ("_HeadBank", {"head", "bank"})],
)
def test_words_of_a_name(name, its_words):
    assert words(name) == its_words
