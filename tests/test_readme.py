"""What README and docs show runs as it is written, with a small store in place of the large one."""

import re
import textwrap
from pathlib import Path

import pytest
import yaml
from served import TOKEN, serving

from featurestore import FeatureStore
from featurestore.photos.catalog import read_catalog

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "tests/FAULTS.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: str, language: str) -> list[str]:
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def test_the_shell_session_runs(built):
    (session,) = blocks(README, "python")
    store_part, predict_part = session.split("import predictor")
    store_part = store_part.replace("features.h5", str(built)).replace('"hflip"', '"hsv"')
    store_part = store_part.replace("(7, 2)", "(5, 1)")  # six images, two views
    names: dict = {}
    exec(store_part, names)
    assert names["store"].n_sealed == 6
    assert 'predictor.predict("runs/' in predict_part  # tests/test_predict.py calls it


def test_a_store_is_opened_by_its_url(built, monkeypatch, tmp_path):
    page = (ROOT / "docs/service.md").read_text()
    (session,) = [block for block in blocks(page, "python") if "FeatureStore" in block]
    monkeypatch.setenv("BIOMASS_CACHE", str(tmp_path))

    with serving(built, token=TOKEN) as url:
        names: dict = {}
        session = session.replace("http://127.0.0.1:8000", url)
        session = session.replace("stores/features?", f"stores/{built.stem}?")
        exec(session.replace("token=...", f"token={TOKEN}"), names)
        assert (names["store"].patches[2, 1] == FeatureStore.open(built).patches[2, 1]).all()
        names["store"].close()


def test_the_quick_starts_table_and_config_are_read(tmp_path):
    from trainer.loop.grid import SweepConfig

    (table,) = blocks(README, "csv")
    (tmp_path / "train.csv").write_text(table)
    assert read_catalog(tmp_path / "train.csv")["image_id"].tolist() == ["ID1"]

    (config,) = blocks(README, "yaml")
    (tmp_path / "first.yaml").write_text(config)
    assert len(SweepConfig.load(tmp_path / "first.yaml").points) == 3
    assert yaml.safe_load(config)["experiment"]["name"] == "first"


def test_every_config_is_explained_and_loads():
    from trainer.loop.grid import SweepConfig

    page = (ROOT / "docs/train.md").read_text()
    named = set(re.findall(r"configs/\w+\.yaml", page))
    assert named == {f"configs/{p.name}" for p in (ROOT / "configs").glob("*.yaml")}
    assert all(SweepConfig.load(ROOT / name).points for name in named)


def test_the_readme_is_short_and_its_pictures_are_small():
    assert len(README.splitlines()) <= 150
    pictures = re.findall(r"^!\[.+\]\((.+)\)$", README, re.MULTILINE)
    assert len(pictures) == 2
    assert all((ROOT / picture).stat().st_size < 200_000 for picture in pictures)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_wraps_at_100_columns(page):
    prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    unbroken = ("|", "!", "- ") if page.name == "backbones.md" else ("|", "!")  # tables, pictures
    long = [line for line in prose.splitlines() if len(line) > 100]
    assert [line for line in long if not line.startswith(unbroken)] == []
