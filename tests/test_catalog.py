"""Contest CSVs, long and wide, become one row an image; what contradicts itself is refused by line
or image."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import InputError
from featurestore.photos.catalog import TARGETS, read_catalog, target_rows
from featurestore.photos.csv_file import BLOCK, read_table
from featurestore.photos.find import find_photographs
from featurestore.photos.tables import NUMBER, number_in, numbers_in

LONG = """sample_id,image_path,Sampling_Date,State,Height_Ave_cm,target_name,target
ID7__Dry_Clover_g,train/ID7.jpg,2015/9/4,Tas,4.5,Dry_Clover_g,0
ID3__Dry_Clover_g,train/ID3.jpg,2015/4/1,NSW,16,Dry_Clover_g,1.25
ID7__Dry_Dead_g,train/ID7.jpg,2015/9/4,Tas,4.5,Dry_Dead_g,31.9
ID3__Dry_Dead_g,train/ID3.jpg,2015/4/1,NSW,16,Dry_Dead_g,2e1
"""
WIDE = "image_id,path,State,Dry_Total_g\n007,a/x.jpg,Vic,5\n008,a/y.jpg,WA,NA\n"
TEST = """sample_id,image_path,target_name
ID9__Dry_Total_g,test/ID9.jpg,Dry_Total_g
ID2__Dry_Total_g,test/ID2.jpg,Dry_Total_g
ID9__GDM_g,test/ID9.jpg,GDM_g
"""


@pytest.fixture
def csv(tmp_path):
    def write(text: str | bytes) -> Path:
        (tmp_path / "train.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path / "train.csv"

    return write


def test_long_has_one_row_an_image_in_order_of_appearance(csv):
    frame = read_catalog(csv(LONG))
    assert list(frame.columns) == [
        "image_id",
        "path",
        "Sampling_Date",
        "State",
        "Height_Ave_cm",
        "Dry_Clover_g",
        "Dry_Dead_g",
    ]
    assert frame.to_numpy().tolist() == [
        ["ID7", "train/ID7.jpg", "2015/9/4", "Tas", 4.5, 0.0, 31.9],
        ["ID3", "train/ID3.jpg", "2015/4/1", "NSW", 16.0, 1.25, 20.0],
    ]


def test_text_is_python_str_and_numbers_are_float64(csv):
    frame = read_catalog(csv(LONG))
    assert [str(dtype) for dtype in frame.dtypes] == ["object"] * 4 + ["float64"] * 3
    assert type(frame["State"][0]) is str
    assert (frame["State"] + "_" + frame["Sampling_Date"]).tolist() == [
        "Tas_2015/9/4",
        "NSW_2015/4/1",
    ]


def test_an_image_without_one_of_the_targets_has_nan(csv):
    frame = read_catalog(
        csv(LONG.replace("ID3__Dry_Dead_g,train/ID3.jpg,2015/4/1,NSW,16,Dry_Dead_g,2e1\n", ""))
    )
    assert np.isnan(frame["Dry_Dead_g"][1]) and frame["Dry_Clover_g"][1] == 1.25


def test_test_csv_has_ids_and_paths_only(csv):
    assert read_catalog(csv(TEST)).to_dict("list") == {
        "image_id": ["ID9", "ID2"],
        "path": ["test/ID9.jpg", "test/ID2.jpg"],
    }


def test_wide_keeps_ids_with_leading_zeros(csv):
    frame = read_catalog(csv(WIDE))
    assert list(frame.columns) == ["image_id", "path", "State", "Dry_Total_g"]
    assert frame["image_id"].tolist() == ["007", "008"]
    assert frame["Dry_Total_g"][0] == 5 and np.isnan(frame["Dry_Total_g"][1])


def test_wide_without_ids_takes_the_stem(csv):
    assert read_catalog(csv("State,image_path\nVic,a/x.y.jpg\n")).to_dict("list") == {
        "image_id": ["x.y"],
        "path": ["a/x.y.jpg"],
        "State": ["Vic"],
    }


@pytest.mark.parametrize(
    "cells, expected",
    [
        (["1", "-2.5", "+.5e1"], [1.0, -2.5, 5.0]),
        (["1", "007", "3"], ["1", "007", "3"]),
        (["1", "inf", "3"], ["1", "inf", "3"]),
        (["1_0", "2", "3"], ["1_0", "2", "3"]),
        (["NA", "", "NSW"], ["NA", "", "NSW"]),  # NA may be a State
        (["1234567890123456789", "2", "3"], ["1234567890123456789", "2", "3"]),
        (["1e999", "2", "3"], ["1e999", "2", "3"]),
    ],
    ids=["numbers", "leading zero", "infinity", "underscore", "text", "beyond float64", "overflow"],
)
def test_a_column_is_numbers_or_text_as_written(csv, cells, expected):
    rows = "".join(f"{i}.jpg,{cell}\n" for i, cell in enumerate(cells))
    assert read_catalog(csv(f"path,x\n{rows}"))["x"].tolist() == expected


@pytest.mark.parametrize(
    "text, columns",
    [
        ("image_path,GDM_g\na.jpg,-1.5\n", {"GDM_g": [-1.5]}),
        ("image_path,GDM_g\na.jpg,much\n", {"GDM_g": ["much"]}),
        ("image_path,sample_id,mass\na.jpg,7,1\n", {"sample_id": [7.0], "mass": [1.0]}),
        ("path,target\na.jpg,-3\n", {"target": [-3.0]}),
    ],
    ids=["negative", "text", "own sample ids", "a column named target"],
)
def test_names_of_the_contest_mean_nothing_by_themselves(csv, text, columns):
    frame = read_catalog(csv(text))
    assert frame.drop(columns=["image_id", "path"]).to_dict("list") == columns


def test_long_tables_may_hold_other_targets_below_0(csv):
    text = LONG.replace("Dry_Dead_g", "growth").replace("31.9", "-31.9")
    assert read_catalog(csv(text))["growth"].tolist() == [-31.9, 20.0]


CELLS = st.sampled_from(
    ["", "NA", "NaN", "null", "nan", "inf", "-inf", "1e999", "007", "1_0", "1\n2", "3\n", "+.5"]
) | st.from_regex(NUMBER, fullmatch=True)


@given(st.lists(CELLS, max_size=4))
def test_a_column_is_read_as_each_of_its_cells_is(cells):
    each = [number_in(cell) for cell in cells]
    column = numbers_in(cells)
    assert (column is None) == (None in each)
    if column is not None:
        np.testing.assert_array_equal(column, each)


def test_missing_numbers_are_nan(csv):
    column = read_catalog(csv("path,x\na.jpg,1\nb.jpg,\nc.jpg,NA\nd.jpg,NaN\ne.jpg,null\n"))["x"]
    assert column.dtype == np.float64 and column.isna().tolist() == [False, True, True, True, True]


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + WIDE.encode(),
        WIDE.replace("\n", "\r\n"),
        WIDE.replace(",", " , "),
        WIDE.replace("\n", "\n\n"),
        WIDE.rstrip("\n"),
        WIDE.replace("Vic", '"Vic"'),
    ],
    ids=["BOM", "CRLF", "spaces", "blank lines", "no last newline", "quotes"],
)
def test_the_same_csv_written_otherwise_reads_the_same(csv, text):
    assert read_catalog(csv(text)).equals(read_catalog(csv(WIDE)))


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("cell", ["b", '"b"', '"b\nb"'], ids=["bare", "quoted", "two lines"])
def test_a_row_is_known_by_its_last_line_however_far_down(csv, line_break, cell):
    """Rows are read BLOCK at once."""
    lines = ["path,x", *(f"{n}.jpg,{cell}" for n in range(2 * BLOCK))]
    lines[BLOCK + 7 : BLOCK + 7] = ["", ""]  # blank ones, in the middle of a block
    text = line_break.join(lines)
    last_lines = []
    at = 0
    for line in lines:
        at += 1 + line.count("\n")
        last_lines += [at] if line else []
    table = read_table(csv(text))
    assert table.index.tolist() == last_lines[1:]
    assert table["path"].tolist() == [f"{n}.jpg" for n in range(2 * BLOCK)]
    assert set(table["x"]) == {cell.strip('"')}
    torn = line_break.join([*lines, "", f"one cell in {cell}"])
    with pytest.raises(InputError, match=f"line {at + 2 + cell.count(chr(10))}: 1 cell"):
        read_table(csv(torn))


def test_paths_keep_their_unicode_and_commas(csv):
    assert read_catalog(csv('path\n"草地 图/ä, b.jpg"\n'))["path"].tolist() == ["草地 图/ä, b.jpg"]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "no rows"),
        ("path,State\n", "no rows"),
        (b"path\n\xe4.jpg\n", "line 2: byte 5 is not UTF-8 .in Windows-1252 it is 'ä'"),
        (b"\xff\xfep\0a\0t\0h\0", "is UTF-16 .* save it as CSV UTF-8"),
        ("path\na\0.jpg\n", "NUL"),
        ('path\n"a.jpg\n', "line 2: not CSV"),
        ("path,x,x\na.jpg,1,2\n", "header has x twice"),
        (",path\n0,a.jpg\n", "a column without a name"),
        ("path,x\na.jpg,1\nb.jpg\n", "header has 2 cells.*line 3: 1 cell"),
        ("file,x\na.jpg,1\n", "no column image_path; found file, x; a long CSV needs sample_id"),
        (
            "sample_id,target\na__b,1\n",
            "no column image_path, target_name; found sample_id, target",
        ),
        ("path,x\n,1\n", "without the path.*line 2"),
        ("path,width\na.jpg,1\n", "width: .*rename"),
        (
            "path\na/x.jpg\nb/x.jpg\n",
            "image_id of its own.*line 2: 'x': a/x.jpg.*line 3: 'x': b/x.jpg",
        ),
        (
            "path,Dry_Green_g,Dry_Dead_g,Dry_Clover_g,GDM_g,Dry_Total_g\na.jpg,1,1,1,2,-1\n",
            "Dry_Total_g must be .*line 2: a: '-1'",
        ),
    ],
    ids=[
        "empty",
        "header only",
        "latin",
        "utf-16",
        "nul",
        "quote",
        "twice",
        "unnamed",
        "ragged",
        "no path",
        "half long",
        "empty path",
        "reserved",
        "same stem",
        "negative",
    ],
)
def test_a_csv_that_cannot_be_meant_is_refused(csv, text, reason):
    with pytest.raises(InputError, match=f"(?s)train.csv: .*{reason}"):
        read_catalog(csv(text))


@pytest.mark.parametrize(
    "old, new, reason",
    [
        (
            "ID7__Dry_Dead_g,train/ID7.jpg",
            "ID7__Dry_Dead_g,ID7.jpg",
            "image_path.*ID7: train/ID7.jpg [|] ID7.jpg",
        ),
        ("NSW,16,Dry_Dead", "WA,16,Dry_Dead", "differ in State.*ID3: NSW [|] WA"),
        (
            "ID3__Dry_Dead_g",
            "ID3_Dry_Dead_g",
            "`__` and target_name.*line 5: sample_id 'ID3_Dry_Dead_g'",
        ),
        ("ID3__Dry_Dead_g", "__Dry_Dead_g", "`__` and target_name.*line 5"),
        (
            "ID3__Dry_Dead_g",
            "ID3__GDM_g",
            "`__` and target_name.*line 5: sample_id 'ID3__GDM_g', target_name 'Dry_Dead_g'",
        ),
        ("31.9", "much", "target must be a finite number.*line 4: ID7__Dry_Dead_g: 'much'"),
        ("31.9", "-31.9", "target must be .* 0 or more.*'-31.9'"),
        ("31.9", "inf", "target must be a finite.*'inf'"),
        ("Height_Ave_cm", "sha256", "sha256: .*rename"),
        ("Height_Ave_cm", "image_id", "image_id: .*rename"),
        ("Height_Ave_cm", "Dry_Dead_g", "Dry_Dead_g: .*rename"),
        (
            "2e1\n",
            "2e1\nID3__Dry_Dead_g,train/ID3.jpg,2015/4/1,NSW,16,Dry_Dead_g,3\n",
            "several targets.*line 5: ID3__Dry_Dead_g = 20.0.*line 6: ID3__Dry_Dead_g = 3.0",
        ),
    ],
    ids=[
        "path",
        "metadata",
        "no underscores",
        "no id",
        "other target",
        "text",
        "negative",
        "infinite",
        "reserved",
        "our id",
        "target as column",
        "twice",
    ],
)
def test_a_long_csv_that_contradicts_itself_is_refused(csv, old, new, reason):
    assert old in LONG
    with pytest.raises(InputError, match=f"(?s)train.csv: .*{reason}"):
        read_catalog(csv(LONG.replace(old, new)))


def test_a_row_given_twice_alike_counts_once(csv):
    assert read_catalog(csv(LONG + LONG.splitlines(True)[1])).equals(read_catalog(csv(LONG)))


def test_a_csv_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="no.csv: No such file"):
        read_catalog(tmp_path / "no.csv")


def test_target_rows_follow_the_file(csv):
    assert target_rows(csv(TEST)).to_numpy().tolist() == [
        ["ID9__Dry_Total_g", "ID9", "Dry_Total_g"],
        ["ID2__Dry_Total_g", "ID2", "Dry_Total_g"],
        ["ID9__GDM_g", "ID9", "GDM_g"],
    ]


def test_target_rows_of_a_wide_csv_are_all_targets_of_each_image(csv):
    rows = target_rows(csv(WIDE))
    ids = read_catalog(csv(WIDE))["image_id"].tolist()
    assert rows["image_id"].tolist() == [image_id for image_id in ids for _ in TARGETS]
    assert rows["target_name"].tolist() == list(TARGETS) * len(ids)
    assert (rows["sample_id"] == rows["image_id"] + "__" + rows["target_name"]).all()


def test_the_examples_of_the_build_page_are_one_photograph(csv):
    page = (Path(__file__).parent.parent / "docs" / "build.md").read_text()
    long, wide = (
        read_catalog(csv(text)) for text in re.findall("```csv\n(.*?)```", page, re.DOTALL)
    )
    assert long["image_id"].tolist() == wide["image_id"].tolist() == ["ID1"]
    assert long.iloc[0].to_dict().items() <= wide.iloc[0].to_dict().items()


def catalog_of(csv, *paths: str):
    return read_catalog(
        csv("image_id,path\n" + "".join(f"{i},{path}\n" for i, path in enumerate(paths)))
    )


def test_photographs_are_found_in_order(csv, tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("a.jpg", "b/c.jpg"):
        (tmp_path / name).touch()
    assert find_photographs(catalog_of(csv, "b/c.jpg", "a.jpg"), tmp_path) == [
        tmp_path / "b/c.jpg",
        tmp_path / "a.jpg",
    ]


def test_a_folder_of_many_photographs_is_resolved_once(csv, tmp_path, monkeypatch):
    """Nine questions to the disk for each of a million photographs took a minute and a half."""
    (tmp_path / "train").mkdir()
    names = [f"train/{i}.jpg" for i in range(50)]
    for name in names:
        (tmp_path / name).touch()
    frame = catalog_of(csv, *names)
    realpath, asked = os.path.realpath, []
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "realpath", lambda path: asked.append(path) or realpath(path))
        found = find_photographs(frame, tmp_path)
    assert found == [tmp_path / name for name in names]
    assert len(asked) == 2  # the root and the folder


@pytest.mark.parametrize("name", ["x.jpg", "up/x.jpg", "./a/x.jpg", "a//x.jpg"])
def test_a_file_has_one_path_however_it_is_reached(csv, tmp_path, name):
    """Links of folders are followed, too, where they stay below the root."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.jpg").touch()
    (tmp_path / "x.jpg").symlink_to("a/x.jpg")
    (tmp_path / "up").symlink_to("a")
    assert find_photographs(catalog_of(csv, name), tmp_path) == [tmp_path / "a/x.jpg"]


def test_a_folder_in_place_of_a_photograph_is_missing(csv, tmp_path):
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(InputError, match="1 of 1 photograph is missing"):
        find_photographs(catalog_of(csv, "a.jpg"), tmp_path)


def test_B15_every_missing_photograph_is_listed(csv, tmp_path):
    names = [f"{i}.jpg" for i in range(50)]
    with pytest.raises(InputError, match="50 of 50 photographs are missing") as caught:
        find_photographs(catalog_of(csv, *names), tmp_path)
    assert all(f"\n  {name}" in str(caught.value) for name in names)


@pytest.mark.parametrize(
    "path", ["../out.jpg", "{parent}/out.jpg", "link.jpg"], ids=["dots", "absolute", "symlink"]
)
def test_B27_photographs_outside_the_root_are_refused(csv, tmp_path, path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "out.jpg").touch()
    (root / "link.jpg").symlink_to(tmp_path / "out.jpg")
    frame = catalog_of(csv, path.format(parent=tmp_path))
    with pytest.raises(InputError, match="1 of 1 photograph lies outside; use relative paths"):
        find_photographs(frame, root)


def test_paths_that_lead_inside_are_told_as_they_should_be(csv, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.jpg").touch()
    names = [f"{root}/a.jpg", "../root/a.jpg", "C:\\photos\\a.jpg", "a.jpg"]
    with pytest.raises(InputError) as caught:
        find_photographs(catalog_of(csv, *names), root)
    outside, drive, inside, *paths = str(caught.value).splitlines()
    assert "1 of 4 photographs lies outside" in outside and "C:" in drive
    assert "2 of 4 photographs have a path that is absolute" in inside
    assert paths == [f"  {name} -> a.jpg" for name in names[:2]]
