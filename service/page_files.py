"""The page's files as they are sent: modules joined into one, all in a folder named by their hash.

The browser keeps them, and asks for none of them again until one changes: then all have another
address.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent / "page"
MODULES = ("main.js", "token.js")  # each with all that it imports
PLAIN = ("style.css", "icon.svg")
IMPORT = re.compile(r'^import (?:\* as (\w+)|\{([^}]*)\}) from "(\.[^"]+)";\n', re.M)
EXPORT = re.compile(r"^export (?=(?:async )?(?:const|function|class) (\w+))", re.M)
LEFT = re.compile(r"^(import|export)\b.*", re.M)


@dataclass(frozen=True)
class PageFiles:
    """folder : hash of all static files. static : their bytes by name. index, entrance : the page
    and the one that asks for the token, which name the folder."""

    folder: str
    static: Mapping[str, bytes]
    index: bytes
    entrance: bytes


def page_files() -> PageFiles:
    """All files, read now."""
    static = {name: joined(PAGE / name).encode() for name in MODULES}
    static |= {name: (PAGE / name).read_bytes() for name in PLAIN}
    # one address for all: a page never mixes files of two versions
    content = repr(sorted(static.items()))
    folder = hashlib.sha256(content.encode()).hexdigest()[:16]
    pages = []
    for name in ("index.html", "token.html"):
        page = (PAGE / name).read_bytes()
        pages.append(page.replace(b'"static/', f'"static/{folder}/'.encode()))
    return PageFiles(folder, static, *pages)


def joined(entry: Path) -> str:
    """A module and all that it imports as one script, in the order in which a browser runs them.

    Each becomes a function, so that names of one are hidden from the others:

        const $dom = (() => { const { here } = $api; ...; return { el, svg }; })();

    Understands named imports, `* as name`, and `export` before const, function or class.
    ValueError for other imports and exports, for a circle, and for a name that nothing exports.
    """
    parts: list[str] = []
    _add(entry.resolve(), entry.resolve().parent, {}, parts)
    return "".join(parts)


def _add(
    module: Path,
    root: Path,
    exported: dict[Path, list[str] | None],
    parts: list[str],
) -> None:
    """Append a module behind those that it imports.

    exported : names by module; None while it is being added.
    """
    if module in exported:
        if exported[module] is None:
            raise ValueError(f"{module}: it imports a module that imports it in turn")
        return
    exported[module] = None
    text = module.read_text()
    for found in IMPORT.finditer(text):
        other = _imported(module, found)
        _add(other, root, exported, parts)
        missing = [name for name in _taken(found) if name not in exported[other]]
        if missing:
            raise ValueError(f"{module}: {other.name} exports no {', '.join(missing)}")

    def constant(found: re.Match[str]) -> str:
        names = found[1] or f"{{{found[2].replace(' as ', ': ')}}}"
        return f"const {names} = {_variable(_imported(module, found), root)};\n"

    names = exported[module] = EXPORT.findall(text)
    body = EXPORT.sub("", IMPORT.sub(constant, text))
    if left := LEFT.search(body):
        raise ValueError(f"{module}: an import or export that is not understood: {left[0]}")
    head = f"// {module.relative_to(root)}\nconst {_variable(module, root)} = (() => {{\n"
    parts.append(f"{head}{body}return {{ {', '.join(names)} }};\n}})();\n")


def _imported(module: Path, found: re.Match[str]) -> Path:
    return (module.parent / found[3]).resolve()


def _taken(found: re.Match[str]) -> list[str]:
    """Names of an import: of `{ a, b as c }` a and b, of `* as c` none."""
    listed = found[2] or ""
    names = (part.split(" as ")[0].strip() for part in listed.split(","))
    return [name for name in names if name]


def _variable(module: Path, root: Path) -> str:
    name = str(module.relative_to(root).with_suffix(""))
    return "$" + re.sub(r"\W", "_", name)
