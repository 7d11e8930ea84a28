"""Predictions of new photographs, asked over HTTP: the table, its orders, photographs and maps."""

import io
from base64 import b64encode
from urllib.parse import quote

import pandas as pd
import pytest
from commands import biomass
from new_photographs import IDS, write_predictions
from PIL import Image
from served import app_of
from starlette.testclient import TestClient

from featurestore.disk.picture_names import picture_names
from featurestore.errors import InputError
from featurestore.photos.targets import CSIRO
from service.explore import predicted

P = "/v1/predictions"
TOTAL = CSIRO.foremost.name


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    paths = write_predictions(tmp_path_factory.mktemp("predicted"))
    for image_id in IDS[:2]:
        name = picture_names(IDS)[image_id]
        Image.new("RGB", (40, 60), (200, 20, 20)).save(paths["explain"] / name)
    return paths


@pytest.fixture(scope="module")
def client(there):
    return TestClient(app_of(hosts=["testserver"], **there))


def address(image_id: str, rest: str = "") -> str:
    return f"{P}/images/{quote(image_id, safe='')}{rest}"


def test_without_a_store_predictions_are_served_alone(client):
    listing = client.get("/v1/stores").json()
    assert listing["stores"] == [] and listing["predictions"]["url"] == P
    about = client.get(P).json()
    assert (about["n"], about["target"], about["name"]) == (3, TOTAL, "predictions.csv")
    assert [target["name"] for target in about["targets"]] == list(CSIRO.names)
    assert all(each["low"] and each["sd"] and not each["is_class"] for each in about["targets"])


def test_the_table_is_the_file_s_in_any_order(client, there):
    known = pd.read_csv(there["predictions"])
    found = client.get(f"{P}/table.csv").text
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(found)), known)
    least_certain = client.get(f"{P}/table.json?order=-doubt").json()["rows"]
    assert [row[0] for row in least_certain] == [IDS[1], IDS[2], IDS[0]]
    greatest = client.get(f"{P}/table.json?order=-{TOTAL}").json()["rows"]
    assert [row[0] for row in greatest] == [IDS[2], IDS[1], IDS[0]]
    assert client.get(f"{P}/table.json?order=colour").status_code == 400


def test_a_photograph_has_its_row_and_its_neighbours_in_the_order(client):
    found = client.get(address(IDS[2], "?order=-doubt")).json()
    assert (found["previous"], found["next"], found["at"], found["n"]) == (IDS[1], IDS[0], 1, 3)
    assert found["row"][f"{TOTAL}_high"] - found["row"][f"{TOTAL}_low"] == pytest.approx(8)
    assert client.get(address("nobody")).status_code == 404


def test_photographs_are_found_by_the_table_or_by_their_name(client):
    sizes = {}
    for image_id in IDS:
        for rest in ("/photograph.jpg", "/thumb.jpg"):
            picture = Image.open(io.BytesIO(client.get(address(image_id, rest)).content))
            sizes[image_id, rest] = picture.size
    assert [sizes[each, "/photograph.jpg"] for each in IDS] == [
        (600, 300),
        (1200, 600),
        (1600, 800),
    ]
    assert {sizes[each, "/thumb.jpg"] for each in IDS} == {(320, 160)}
    several = client.get(f"{P}/thumbs.json", params={"image": [IDS[1], "unknown", IDS[0]]}).json()
    singly = [b64encode(client.get(address(IDS[k], "/thumb.jpg")).content) for k in (1, 0)]
    assert several == {"thumbs": [singly[0].decode(), None, singly[1].decode()]}
    assert client.get(f"{P}/thumbs.json").status_code == 400


def test_a_picture_is_made_anew_only_when_its_photograph_is_another(tmp_path):
    paths = write_predictions(tmp_path)
    client = TestClient(app_of(hosts=["testserver"], **paths))
    several = f"{P}/thumbs.json?image={quote(IDS[0])}&image={quote(IDS[1])}"
    asked = [address(IDS[0], "/thumb.jpg"), address(IDS[0], "/photograph.jpg"), several]
    tags = [client.get(each).headers["ETag"] for each in asked]
    assert len(set(tags)) == 3
    for each, tag in zip(asked, tags, strict=True):
        known = {"If-None-Match": tag}
        assert client.get(each, headers=known).status_code == 304
    (file,) = [path for path in paths["data"].rglob("*.jpg") if path.stem in IDS[0]]
    Image.new("RGB", (30, 20), (9, 200, 9)).save(file)
    for each, tag in zip(asked, tags, strict=True):
        answer = client.get(each, headers={"If-None-Match": tag})
        assert answer.status_code == 200 and answer.headers["ETag"] != tag
    shown = Image.open(io.BytesIO(client.get(asked[0]).content))
    assert shown.size == (30, 20)


def test_maps_are_those_of_explain(client):
    picture = Image.open(io.BytesIO(client.get(address(IDS[1], "/explained.jpg")).content))
    assert picture.size == (40, 60) and picture.getpixel((9, 9))[0] > 150
    answer = client.get(address(IDS[2], "/explained.jpg"))
    assert answer.status_code == 404 and "no picture" in answer.json()["error"]["message"]


def test_a_path_that_leads_out_of_the_folder_is_no_photograph(there, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.jpg")
    table = pd.DataFrame({"image_id": IDS, "image_path": ["../secret.jpg", "a.jpg", "b.jpg"]})
    table.to_csv(data / "test.csv", index=False)
    app = app_of(hosts=["testserver"], predictions=there["predictions"], data=data)
    answer = TestClient(app).get(address(IDS[0], "/photograph.jpg"))
    assert answer.status_code == 404 and str(tmp_path) not in answer.text


def test_words_have_their_probability_and_the_least_probable_is_the_most_doubtful(tmp_path):
    table = pd.DataFrame(
        {
            "image_id": ["007", "NA"],
            "yield_t": [1.0, 2.0],
            "crop": ["rye", "oats"],
            "crop_probability": [0.9, 0.4],
        }
    )
    table.to_csv(tmp_path / "p.csv", index=False)
    read = predicted.read(tmp_path / "p.csv")
    assert read["image_id"].tolist() == ["007", "NA"]
    names = [(each["name"], each["is_class"]) for each in predicted.targets(read)]
    assert names == [("yield_t", False), ("crop", True)]
    assert predicted.ordered(read, "-doubt", "crop")["image_id"].tolist() == ["NA", "007"]
    assert predicted.first_target(read, "crop") == "crop"
    assert predicted.first_target(read, "other") == "yield_t"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sample_id,target\na,1\n", "not a wide table"),
        ("image_id,Dry_Total_g\na,1\na,2\n", "an image_id of its own"),
        ('image_id,Dry_Total_g\n"a,1\n', "cannot be read"),
    ],
)
def test_what_is_no_table_of_predictions_is_refused_at_the_start(tmp_path, text, told):
    file = tmp_path / "predictions.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=told):
        predicted.read(file)
    assert told in biomass("store", "serve", "--predictions", file, code=3).output


def test_options_that_lack_another_are_refused(tmp_path):
    assert "--predictions FILE" in biomass("store", "serve", code=2).output
    alone = biomass("store", "serve", tmp_path, "--explain", tmp_path, code=2)
    assert "add --predictions" in alone.output
    missing = biomass("store", "serve", "--predictions", tmp_path / "none.csv", code=3)
    assert "not there" in missing.output
