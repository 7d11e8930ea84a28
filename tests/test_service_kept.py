"""What a browser keeps and need not ask for again, and what comes compressed."""

import re
import shutil

import pytest
from conftest import tiny_frame, tiny_rows, tiny_spec
from served import client_of, error_of, write_served

from featurestore import open_writer
from service import page_files
from service.answers.kept import KEPT
from service.explore.sweeps import state

S = "/v1/stores/features"
OWN = [
    "catalog.json",
    "catalog.csv",
    "stats.json",
    "overview.json",
    "odd.json",
    "map.json?view=hflip",
    "images/@0/nearest.json",
    "images/@0/views.csv",
    "images/@0/thumb.jpg",
    "thumbs.json?image=ID0",
    "images/@0/pca.png",
    "images/@0/norms.json",
    "images/@0/similar.json?patch=0,0",
]
MORE = ["images/@0", "images/@0/predictions.json", "images/@0/photograph.jpg", ""]
BYTES = ["rows/@0/0", "arrays/cls", "zarr/patches/c/0/0/0/0/0", "zarr/zarr.json", "file"]
GZIP = {"Accept-Encoding": "gzip"}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_served(tmp_path_factory.mktemp("kept"), "h5", seal=4)


@pytest.fixture(scope="module")
def client(path):
    return client_of(path)


def of(address: str, state: str) -> str:
    return f"{S}/{address}{'&' if '?' in address else '?'}of={state}"


def state_of(client) -> str:
    return client.get("/v1/stores").json()["stores"][0]["state"]


# -- the page's files


def test_all_files_lie_in_one_folder_and_are_kept(client):
    page = client.get("/")
    assert "no-cache" in page.headers["Cache-Control"]
    addresses = re.findall(r'"(static/[^"]*)"', page.text)
    assert len({address.rsplit("/", 1)[0] for address in addresses}) == 1 < len(addresses)
    for address in addresses:
        answer = client.get(f"/{address}")
        assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert error_of(client.get("/static/0123456789abcdef/main.js")) == (404, "not-found")


def test_the_folder_has_another_name_once_any_file_is_another(tmp_path, monkeypatch):
    shutil.copytree(page_files.PAGE, tmp_path / "page")
    monkeypatch.setattr(page_files, "PAGE", tmp_path / "page")
    names = [page_files.page_files().folder]
    for name in ("style.css", "views/map.js", "token.js"):
        with open(tmp_path / "page" / name, "a") as file:
            file.write("\n")
        names.append(page_files.page_files().folder)
    assert len(set(names)) == 4


def write_modules(folder, **texts: str):
    for name, text in texts.items():
        (folder / f"{name}.js").write_text(text)
    return folder / "main.js"


def test_modules_become_one_script_each_a_function_of_its_own(tmp_path):
    entry = write_modules(
        tmp_path,
        main='import { f as g,\n  h } from "./a.js";\nimport * as b from "./b.js";\ng(h, b.k);\n',
        a='import { k } from "./b.js";\nexport function f() {}\nexport const h = k;\n',
        b="export async function k() {}\n",
    )
    assert page_files.joined(entry) == (
        "// b.js\nconst $b = (() => {\nasync function k() {}\nreturn { k };\n})();\n"
        "// a.js\nconst $a = (() => {\nconst { k } = $b;\nfunction f() {}\nconst h = k;\n"
        "return { f, h };\n})();\n"
        "// main.js\nconst $main = (() => {\nconst { f: g,\n  h } = $a;\nconst b = $b;\n"
        "g(h, b.k);\nreturn {  };\n})();\n"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('import { none } from "./a.js";\n', "a.js exports no none"),
        ("export default 3;\n", "export default 3;"),
        ('import a from "./a.js";\n', "import a from"),
        ('import { f } from "./c.js";\n', "imports it in turn"),
    ],
    ids=["missing", "default", "unnamed", "circle"],
)
def test_what_cannot_be_joined_is_refused(tmp_path, text, told):
    others = {"a": "export const f = 1;\n", "c": 'import "x";\nimport { g } from "./main.js";\n'}
    with pytest.raises(ValueError, match=re.escape(told)):
        page_files.joined(write_modules(tmp_path, main=text, **others))


# -- answers


@pytest.mark.parametrize("address", OWN)
def test_an_answer_of_the_present_state_is_kept(client, address):
    answer = client.get(of(address, state_of(client)))
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, KEPT)
    for other in (f"{S}/{address}", of(address, "0123456789abcdef-00000000")):
        assert client.get(other).headers["Cache-Control"] == "private, no-cache"


@pytest.mark.parametrize("address", MORE, ids=str)
def test_what_depends_on_more_than_the_store_is_never_kept(client, address):
    answer = client.get(of(address, state_of(client)).replace("/?", "?"))
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "private, no-cache")


def test_an_error_is_never_kept(client):
    answer = client.get(of("images/@0/similar.json", state_of(client)))
    assert (answer.status_code, answer.headers["Cache-Control"]) == (400, "no-store")


def test_a_store_that_grows_has_another_state(tmp_path):
    frame = tiny_frame()
    spec = tiny_spec(frame)
    with open_writer(tmp_path / "features.h5", spec, frame) as writer:
        writer.put(0, tiny_rows(spec, 0))
        client = client_of(tmp_path / "features.h5")
        before = state_of(client)
        writer.put(1, tiny_rows(spec, 1))
    assert state_of(client) != before
    assert client.get(of("stats.json", before)).headers["Cache-Control"] == "private, no-cache"


def test_a_sweep_that_goes_on_has_another_state(tmp_path):
    run = tmp_path / "001_tiny"
    run.mkdir()
    (tmp_path / "sweep.json").write_text("{}")
    (run / "config.yaml").write_text("")
    states = [state(tmp_path)]
    for name in ("001_tiny/metrics.jsonl", "001_tiny/oof.csv", "summary.csv", "summary.json"):
        (tmp_path / name).write_text("more\n")
        states.append(state(tmp_path))
    assert len(set(states)) == 5


# -- compression


@pytest.mark.parametrize("address", ["/openapi.json", f"{S}/catalog.json", f"{S}/catalog.csv", "/"])
def test_texts_are_compressed_for_who_accepts_it(client, address):
    whole = client.get(address, headers={"Accept-Encoding": "identity"})
    small = client.get(address, headers=GZIP)
    assert small.headers["Content-Encoding"] == "gzip" and small.text == whole.text
    assert "Content-Encoding" not in whole.headers


@pytest.mark.parametrize("address", BYTES)
def test_bytes_of_a_store_are_never_compressed(client, address):
    for more in ({}, {"Range": "bytes=0-9"}):
        answer = client.get(f"{S}/{address}", headers=GZIP | more)
        assert answer.status_code == (206 if more else 200)
        assert "Content-Encoding" not in answer.headers
