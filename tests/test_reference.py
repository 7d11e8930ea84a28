"""docs/config.md is what the models say; its least config is one."""

import re
from pathlib import Path

from trainer.grid import SweepConfig
from trainer.reference import reference

PAGE = Path(__file__).parent.parent / "docs/config.md"


def test_the_page_is_the_models_own():
    assert PAGE.read_text() == reference(), "python -m trainer.reference > docs/config.md"
    assert all(len(line.split(" | ")) >= 3 and line.rstrip(" |").endswith(".") for line in reference().splitlines()
               if line.startswith("| `"))


def test_its_least_config_is_one(tmp_path):
    text, = re.findall("```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "least.yaml").write_text(text)
    assert len(SweepConfig.load(tmp_path / "least.yaml").points) == 3  # ridge has no learning rate
