"""Measure how the code is built: `python tools/house.py`, with `--json` for machines and `--calls`
for the training path.

A line of code holds at least one token that is neither a comment nor part of a docstring. Tokens
are names, numbers, strings and operators. What the marks in docs/design.md mean is said beside each
figure.
"""

import argparse
import ast
import io
import json
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("featurestore", "trainer", "predictor", "service")
WIDTH = 100
MOST_LINES = 400
LAYOUT_TOKENS = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


@dataclass(frozen=True)
class Source:
    """One file of the project, parsed."""

    path: Path
    text: str
    nodes: list[ast.AST]
    """All of its tree. Once a file: to walk costs more than what is asked of a node."""

    @property
    def module(self) -> str:
        """trainer.heads, also for trainer/heads/__init__.py."""
        parts = self.path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def package(self) -> str:
        """The package that a relative import of this file starts from."""
        if self.path.name == "__init__.py":
            return self.module
        return self.module.rpartition(".")[0]


def sources() -> list[Source]:
    paths = [ROOT / "cli.py"]
    for package in PACKAGES:
        paths += sorted((ROOT / package).rglob("*.py"))
    found = []
    for path in paths:
        text = path.read_text("utf-8")
        found.append(Source(path, text, list(ast.walk(ast.parse(text)))))
    return found


# -- lines


def docstring_lines(source: Source) -> set[int]:
    """Lines of texts that stand alone: docstrings, and the texts below fields."""
    lines = set()
    for node in source.nodes:
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            lines.update(range(node.lineno, node.end_lineno + 1))
    return lines


def density(files: list[Source]) -> dict[str, float]:
    """Tokens a line of code, comments per 100 lines of code, and the share of lines wider than
    WIDTH."""
    n_tokens = n_lines = n_comments = n_wide = n_all = 0
    for source in files:
        texts = docstring_lines(source)
        code_lines = set()
        for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
            if token.type == tokenize.COMMENT:
                n_comments += 1
            elif token.type not in LAYOUT_TOKENS and token.start[0] not in texts:
                n_tokens += 1
                code_lines.update(range(token.start[0], token.end[0] + 1))
        n_lines += len(code_lines)
        lines = source.text.splitlines()
        n_all += len(lines)
        n_wide += sum(len(line) > WIDTH for line in lines)
    return {
        "tokens_a_line": n_tokens / n_lines,
        "comments_per_100_lines": 100 * n_comments / n_lines,
        "wide_lines_percent": 100 * n_wide / n_all,
    }


# -- functions


def functions(source: Source) -> Iterator[ast.FunctionDef]:
    for node in source.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def single_caller_helpers(files: list[Source], called: bool = False) -> list[str]:
    """Private functions and methods that one place of their file names.

    called : only those that are called there, and could be inlined; others are handed on as values
        (a thread's target, an entry of a table) or are decorated.
    """
    found = []
    for source in files:
        used = Counter()
        calls = set()
        for node in source.nodes:
            name = name_of(node)
            if name is not None:
                used[name] += 1
            elif isinstance(node, ast.Call):
                calls.add(name_of(node.func))
        for function in functions(source):
            is_helper = is_private(function.name) and used[function.name] == 1
            can_be_inlined = function.name in calls and not function.decorator_list
            if is_helper and (can_be_inlined or not called):
                found.append(f"{source.module}.{function.name}")
    return found


def name_of(node: ast.AST) -> str | None:
    """What a name or an attribute names."""
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else None


def largest_class(files: list[Source]) -> tuple[str, int]:
    sizes = {}
    for source in files:
        for node in source.nodes:
            if isinstance(node, ast.ClassDef):
                methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
                sizes[f"{source.module}.{node.name}"] = len(methods)
    return max(sizes.items(), key=lambda item: item[1])


# -- imports


def imports(source: Source, modules: set[str]) -> set[str]:
    """Modules of the project that a file imports anywhere in it, lazily and for types included."""
    found = set()
    for node in source.nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                start = source.package.split(".")
                start = start[: len(start) - node.level + 1]
                base = ".".join([*start, *([base] if base else [])])
            # `from package import module` imports the module, `from module import name` its module
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in modules else base)
    return {name for name in found if name in modules and name != source.module}


def import_graph(files: list[Source]) -> dict[str, set[str]]:
    modules = {source.module for source in files}
    return {source.module: imports(source, modules) for source in files}


def room_of(module: str) -> str:
    """featurestore.read of featurestore.read.rows; a file that lies in no room stands for
    itself."""
    parts = module.split(".")
    return ".".join(parts[:2])


def room_graph(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    rooms = defaultdict(set)
    for module, imported in graph.items():
        for each in imported:
            if room_of(each) != room_of(module):
                rooms[room_of(module)].add(room_of(each))
    return dict(rooms)


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Sets of nodes that reach each other (Tarjan 1972, strongly connected components), the largest
    first."""
    index, low, stack, on_stack, found = {}, {}, [], set(), []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        on_stack.add(node)
        for each in sorted(graph.get(node, ())):
            if each not in index:
                visit(each)
                low[node] = min(low[node], low[each])
            elif each in on_stack:
                low[node] = min(low[node], index[each])
        if low[node] == index[node]:
            component = []
            while not component or component[-1] != node:
                component.append(stack.pop())
                on_stack.remove(component[-1])
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return sorted(found, key=len, reverse=True)


def private_names_across_rooms(files: list[Source]) -> list[str]:
    """Imports of a private name or a private module from another room."""
    modules = {source.module for source in files}
    found = []
    for source in files:
        for node in source.nodes:
            if not isinstance(node, ast.ImportFrom) or not node.module or node.level:
                continue
            if node.module.split(".")[0] not in PACKAGES or room_of(node.module) == room_of(
                source.module
            ):
                continue
            is_other_package = node.module.split(".")[0] != source.module.split(".")[0]
            names = [alias.name for alias in node.names]
            private = [name for name in names if is_private(name)]
            last = node.module.rpartition(".")[2]
            if is_other_package and is_private(last) and node.module in modules:
                private.append(last)
            found += [f"{source.module}: {node.module}.{name}" for name in private]
    return found


# -- the training path


def calls_to_bytes() -> list[str]:
    """Train a small sweep by the command and note the project's calls that stand between it and the
    first mapped row."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from house_path import first_row  # tests/house_path.py: needs torch and a store

    return first_row()


def measure() -> dict[str, object]:
    files = sources()
    graph = import_graph(files)
    n_functions = sum(1 for source in files for _ in functions(source))
    helpers = single_caller_helpers(files)
    called = single_caller_helpers(files, called=True)
    name, n_methods = largest_class(files)
    long_files = {}
    for source in files:
        n_lines = len(source.text.splitlines())
        if n_lines > MOST_LINES:
            long_files[str(source.path.relative_to(ROOT))] = n_lines
    return {
        **{key: round(value, 2) for key, value in density(files).items()},
        "single_caller_helpers_percent": round(100 * len(helpers) / n_functions, 1),
        "single_caller_helpers": helpers,
        "of_them_called_percent": round(100 * len(called) / n_functions, 1),
        "largest_class": name,
        "largest_class_methods": n_methods,
        "cycles_of_files": cycles(graph),
        "cycles_of_rooms": cycles(room_graph(graph)),
        "private_names_across_rooms": private_names_across_rooms(files),
        "files_over_400_lines": long_files,
        "n_functions": n_functions,
        "n_files": len(files),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json",
        action="store_true",
        help="Print all of it as JSON, with the names behind the figures.",
    )
    parser.add_argument(
        "--calls",
        action="store_true",
        help="Also count the calls from `biomass train` to a mapped row.",
    )
    arguments = parser.parse_args()

    found = measure()
    if arguments.calls:
        found["calls_from_command_to_bytes"] = calls_to_bytes()
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    for key, value in found.items():
        print(f"{key:32} {len(value) if isinstance(value, list | dict) else value}")


if __name__ == "__main__":
    main()
