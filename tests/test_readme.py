"""The README's shell session runs as it is written, with a small store in place of the large
one."""

import re
from pathlib import Path

from served import TOKEN, serving

from featurestore import FeatureStore

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_shell_session_runs(built, monkeypatch, tmp_path):
    session, _ = re.findall(r"```python\n(.*?)```", README, re.S)
    store_part, predict_part = session.split("import predictor")
    store_part = store_part.replace("features.h5", str(built)).replace('"hflip"', '"hsv"')
    store_part = store_part.replace("(7, 2)", "(5, 1)")  # six images, two views
    names: dict = {}
    exec(store_part, names)
    assert names["store"].n_sealed == 6
    assert 'predictor.predict("runs/' in predict_part  # tests/test_predict.py calls it


def test_a_store_is_opened_by_its_url(built, monkeypatch, tmp_path):
    _, session = re.findall(r"```python\n(.*?)```", README, re.S)
    monkeypatch.setenv("BIOMASS_CACHE", str(tmp_path))
    with serving(built, token=TOKEN) as url:
        names = {"FeatureStore": FeatureStore}
        session = session.replace("http://127.0.0.1:8000", url).replace("features", built.stem)
        exec(session.replace("token=...", f"token={TOKEN}"), names)
        assert (names["store"].patches[2, 1] == FeatureStore.open(built).patches[2, 1]).all()
        names["store"].close()


def test_every_config_named_is_there_and_loads():
    from trainer.loop.grid import SweepConfig

    root = Path(__file__).parent.parent
    named = set(re.findall(r"configs/\w+\.yaml", README))
    assert named == {f"configs/{p.name}" for p in (root / "configs").glob("*.yaml")}
    assert all(SweepConfig.load(root / name).points for name in named)
