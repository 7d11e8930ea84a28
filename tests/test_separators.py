"""A CSV's separator and decimals are recognised and said, or refused where a number could be read in
two ways."""

import io
from pathlib import Path

import pandas as pd
import pytest

from featurestore.errors import InputError
from featurestore.photos.catalog import read_catalog

PLAIN = """image_path,farm,"plots, all",mass,tall_cm
a.jpg,"Oak; Elm",1 and 2,16.3,4
b.jpg,Ash,3,0.25,NA
c.jpg,Ash,,1e1,12
"""


def csv(tmp_path: Path, text: str) -> Path:
    (tmp_path / "train.csv").write_text(text)
    return tmp_path / "train.csv"


def written(text: str, separator: str, decimal: str) -> str:
    """The table as another program writes it."""
    rows = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    for name in ("mass", "tall_cm"):
        rows[name] = rows[name].str.replace(".", decimal)
    return rows.to_csv(index=False, sep=separator)


@pytest.mark.parametrize(
    "separator, decimal, told",
    [
        (",", ".", None),
        (";", ".", "separator ;"),
        (";", ",", "separator ; and decimal comma"),
        ("\t", ".", "separator tab"),
        ("\t", ",", "separator tab and decimal comma"),
    ],
)
def test_a_table_is_the_same_however_it_was_saved(tmp_path, capsys, separator, decimal, told):
    expected = read_catalog(csv(tmp_path, PLAIN))
    path = csv(tmp_path, written(PLAIN, separator, decimal))
    assert read_catalog(path).equals(expected)
    assert read_catalog(path).equals(expected)

    said = capsys.readouterr().err
    assert said == (f"{path}: read with {told}\n" if told else "")


def test_long_tables_are_recognised_too(tmp_path):
    text = "sample_id;image_path;target_name;target\na__mass;a.jpg;mass;16,3\n"
    assert read_catalog(csv(tmp_path, text))["mass"].tolist() == [16.3]


@pytest.mark.parametrize(
    "text, reason",
    [
        (
            "path;mass;height\na.jpg;1,5;2\nb.jpg;2;1.5\n",
            "some numbers have a decimal comma, others a decimal point; write all .*"
            "line 2: mass: '1,5'.*line 3: height: '1.5'",
        ),
        ("path;mass\na.jpg;1,5\nb.jpg;1.5\n", "line 2: mass: '1,5'.*line 3: mass: '1.5'"),
        (
            'path,mass\na.jpg,"1,5"\n',
            "commas in numbers, where commas separate the cells too.*line 2: mass: '1,5'",
        ),
        ("path,mass\na.jpg,1,5\n", "header has 2 cells.*separate the cells with ;.*line 2: 3 cells"),
        (
            "path;mass\na.jpg;2\nb.jpg;1,500\n",
            "1,500 may be a number with three decimals or a thousand.*line 3: mass: '1,500'",
        ),
        ("path;mass\na.jpg;1.500\n", "1.500 may be .*separate the cells with commas"),
        ("path;a,path\na.jpg;1,b.jpg\n", "line 1: .*separated by ',' or ';'"),
        ("path|mass\na.jpg|1\n", "separated by '|'; save it with commas, semicolons or tabs"),
        ("file;mass\na.jpg;1\n", "no column image_path; found file, mass"),
    ],
    ids=[
        "both decimals", "both in a column", "quoted commas", "split commas", "comma thousands",
        "point thousands", "two separators", "bars", "no path",
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_refused(tmp_path, text, reason):
    with pytest.raises(InputError, match=f"(?s)train.csv: .*{reason.replace('|', '[|]')}"):
        read_catalog(csv(tmp_path, text))


@pytest.mark.parametrize(
    "text, cells",
    [
        ("path;mass\na.jpg;1,500\nb.jpg;0,25\n", [1.5, 0.25]),
        ("path;mass\na.jpg;1.500\nb.jpg;12.5\n", [1.5, 12.5]),
        ("path\tmass\na.jpg\t48.123\n", [48.123]),
        ('path,plots\na.jpg,"1,2"\nb.jpg,"1,2,3"\n', ["1,2", "1,2,3"]),
        ("path;plots\na.jpg;1,2 and 3\nb.jpg;4\n", ["1,2 and 3", "4"]),
        ("path;mass\na.jpg;1,5\nb.jpg;2,5\nc.jpg;lost\n", ["1.5", "2.5", "lost"]),
    ],
    ids=["another decimal", "another point", "tab and point", "lists", "texts", "mostly numbers"],
)
def test_one_cell_may_settle_how_others_are_read(tmp_path, text, cells):
    assert read_catalog(csv(tmp_path, text)).iloc[:, 2].tolist() == cells


def test_ids_and_paths_stay_as_written(tmp_path):
    text = "image_id;path;mass\n1,5;2,5;3,5\n"
    frame = read_catalog(csv(tmp_path, text))
    assert frame.iloc[0].tolist() == ["1,5", "2,5", 3.5]
