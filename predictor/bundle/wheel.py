"""A wheel of this project, from the sources that run: from a checkout, an editable or a normal
install the same bytes.

Written here and not by a build tool, since the machine that makes a bundle may have none, and its
wheels carry times.
"""

import base64
import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from configparser import ConfigParser
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from featurestore.about import DISTRIBUTION
from featurestore.errors import InputError

ROOT = Path(__file__).parent.parent.parent  # the checkout, or site-packages
KINDS = (".py", ".safetensors", ".md", ".html", ".css", ".js", ".svg", ".txt")
TIME = (1980, 1, 1, 0, 0, 0)  # the first that a zip can say
TAG = "py3-none-any"


@dataclass(frozen=True)
class Metadata:
    """What an installer has to know."""

    version: str
    fields: tuple[tuple[str, str], ...]
    scripts: str
    licence: str
    packages: tuple[str, ...]
    """Folders beside cli.py, in order of their names."""

    def __str__(self) -> str:
        fields = [("Metadata-Version", "2.1"), *self.fields]
        return "".join(f"{name}: {value}\n" for name, value in fields)


def write_wheel(folder: Path) -> Path:
    """Write this project's wheel in a folder; InputError if its metadata cannot be found."""
    told = metadata()
    # as wheels spell a distribution's name
    name = f"{DISTRIBUTION.replace('-', '_')}-{told.version}"
    info = f"{name}.dist-info"
    path = folder / f"{name}-{TAG}.whl"
    content = {}
    for file in sources(told.packages):
        content[str(file.relative_to(ROOT))] = file.read_bytes()
    about = {
        "METADATA": str(told),
        "WHEEL": f"Wheel-Version: 1.0\nGenerator: biomass\nRoot-Is-Purelib: true\nTag: {TAG}\n",
        "entry_points.txt": told.scripts,
        "top_level.txt": "\n".join(["cli", *told.packages, ""]),
        "LICENSE": told.licence,
    }
    for file, text in about.items():
        content[f"{info}/{file}"] = text.encode()
    lines = []
    for name, data in content.items():
        encoded = base64.urlsafe_b64encode(hashlib.sha256(data).digest())
        digest = encoded.rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}\n")
    # its own line has neither: it cannot hold its own hash
    content[f"{info}/RECORD"] = "".join([*lines, f"{info}/RECORD,,\n"]).encode()
    with zipfile.ZipFile(path, "w") as wheel:  # stored, not deflated: zlibs differ
        for name, data in content.items():
            entry = zipfile.ZipInfo(name, TIME)
            entry.create_system = 3  # Unix, whatever writes it
            entry.external_attr = 0o100644 << 16  # a file, its mode whatever the umask is
            wheel.writestr(entry, data)
    return path


def sources(packages: Sequence[str]) -> Iterator[Path]:
    """The project's own files, in order of their names: modules and package data."""
    yield ROOT / "cli.py"
    for package in packages:
        for file in sorted((ROOT / package).rglob("*")):
            parts = file.relative_to(ROOT).parts
            hidden = any(part.startswith((".", "__pycache__")) for part in parts)
            if file.suffix in KINDS and file.is_file() and not hidden:
                yield file


def metadata() -> Metadata:
    """From setup.cfg of the checkout; where there is none, from what pip installed."""
    return _of_checkout() if (ROOT / "setup.cfg").exists() else _of_install()


def _of_checkout() -> Metadata:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    about = config["metadata"]
    options = config["options"]
    return _metadata(
        about["version"],
        about["description"],
        about["license"],
        options["python_requires"],
        options["install_requires"].split(),
        config["options.entry_points"]["console_scripts"].strip(),
        (ROOT / "LICENSE").read_text(encoding="utf-8"),
        [name.rstrip("*") for name in config["options.packages.find"]["include"].split()],
    )


def _of_install() -> Metadata:
    try:
        found = distribution(DISTRIBUTION)
    except PackageNotFoundError as err:
        raise InputError(
            f"{ROOT}: neither a checkout with setup.cfg nor installed by pip, so a wheel cannot "
            "say its version; `pip install .` in the checkout first"
        ) from err
    told = found.metadata
    # with a ; it is an extra's
    requires = [line.replace(" ", "") for line in found.requires or [] if ";" not in line]
    (script,) = found.entry_points.select(group="console_scripts")
    licence = next(file for file in found.files or [] if file.name == "LICENSE")
    return _metadata(
        told["Version"],
        told["Summary"],
        told["License-Expression"] or told["License"],
        told["Requires-Python"],
        requires,
        f"{script.name} = {script.value}",
        licence.read_text(encoding="utf-8"),
        [name for name in found.read_text("top_level.txt").split() if name != "cli"],
    )


def _metadata(
    version: str,
    summary: str,
    licence: str,
    python: str,
    requires: list[str],
    script: str,
    text: str,
    packages: list[str],
) -> Metadata:
    fields = [
        ("Name", DISTRIBUTION),
        ("Version", version),
        ("Summary", summary),
        ("License", licence),
        ("Requires-Python", python),
        *(("Requires-Dist", line) for line in requires),
    ]
    return Metadata(
        version,
        tuple(fields),
        f"[console_scripts]\n{script}\n",
        text,
        tuple(sorted(packages)),
    )
