"""Make the pictures of the README from the demo: `python tools/pictures.py`.

Runs `biomass demo`, copies the leaderboard that its sweep drew, and takes a picture of the page of
`biomass store serve`. Needs Debian's chromium and npm; npm installs what tests/browser pins.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
MOST_BYTES = 200_000
BIOMASS = [sys.executable, "-m", "cli"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--demo", type=Path, help="A finished demo's folder, in place of a new one."
    )
    demo = parser.parse_args().demo

    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        if demo is None:
            demo = Path(temporary) / "demo"
            subprocess.run([*BIOMASS, "demo", "--out", demo], cwd=ROOT, check=True)
        (sweep,) = (demo / "runs").iterdir()

        shutil.copyfile(sweep / "leaderboard.png", PICTURES / "leaderboard.png")
        with serving(demo, sweep) as url:
            picture_of_page(url, PICTURES / "page.jpg", Path(temporary) / "browser")

    for path in sorted(PICTURES.iterdir()):
        n_bytes = path.stat().st_size
        print(f"{path.relative_to(ROOT)}: {n_bytes} bytes")
        if n_bytes >= MOST_BYTES:
            sys.exit(f"{path}: more than {MOST_BYTES} bytes")


@contextmanager
def serving(demo: Path, sweep: Path):
    """The address, with its token, of a server of the demo's store and sweep."""
    command = [*BIOMASS, "store", "serve", demo / "features.h5"]
    command += ["--sweep", sweep, "--data", demo / "data", "--port", "0", "--json"]

    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        printed = json.loads(server.stdout.readline())
        try:
            yield f"{printed['url']}?token={printed['token']}"
        finally:
            server.terminate()


def picture_of_page(url: str, picture: Path, browser: Path) -> None:
    shutil.copytree(ROOT / "tests" / "browser", browser)
    shutil.copy(Path(__file__).with_name("page_picture.mjs"), browser)
    install = ["npm", "ci", "--prefix", browser, "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["node", browser / "page_picture.mjs", url, picture], check=True)


if __name__ == "__main__":
    main()
