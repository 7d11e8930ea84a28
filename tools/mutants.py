"""Change the code at random, one change at a time, and see whether a quick test fails: `make
mutants`.

mutmut makes the mutants and runs the tests (its settings are in setup.cfg). This draws a sample of
them with a seed and prints the share that tests found in each module. It leaves out what no test
can see: the words of a message and the `stacklevel=` of a warning, `strict=` of a zip, which is for
mistakes of our own, and `device=`, since there is no GPU. Mutants that a person judged equivalent
are listed in tools/equivalent_mutants.csv. Exit code 1 if a module's share is below the target.

mutmut changes no decorated function and nothing outside functions, such as constants and the
defaults of fields; `--unseen` lists them.
"""

import argparse
import ast
import csv
import difflib
import json
import random
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
MUTANTS = ROOT / "mutants"
EQUIVALENT = ROOT / "tools/equivalent_mutants.csv"
TARGET = 0.9
SURVIVED = (0, 33, None)
"""mutmut's codes for a mutant that no test noticed, that no test runs, and that was not tried."""


@dataclass(frozen=True)
class Mutant:
    """One changed function."""

    name: str
    """As mutmut calls it: trainer.heads.loss.x_labels_of__mutmut_1."""
    module: str
    """trainer/heads/loss.py"""
    function: str
    change: str
    """The lines that differ, as `- old` and `+ new`."""
    is_visible: bool
    """Whether more differs than what no test can see."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sample", type=int, default=40, help="Mutants of each module, or all of a smaller one."
    )
    parser.add_argument("--seed", type=int, default=0, help="Of the sample.")
    parser.add_argument(
        "--modules", nargs="*", help="Only these, e.g. trainer/heads/loss.py.  [all of setup.cfg]"
    )
    parser.add_argument(
        "--unseen", action="store_true", help="List what mutmut does not change, and stop."
    )
    arguments = parser.parse_args()
    modules = arguments.modules or mutated_modules()
    if arguments.unseen:
        for module in modules:
            print(f"{module}: {', '.join(unseen(module)) or 'nothing'}")
        return 0

    # makes all mutants and notes which test runs which function, then finds that there is nothing
    # to do
    shutil.rmtree(MUTANTS, ignore_errors=True)
    mutmut("run", "no.such.mutant", expected="nothing matches")
    run_whole_files()
    chosen = [
        mutant for module in modules for mutant in sample(module, arguments.sample, arguments.seed)
    ]
    mutmut("run", *(mutant.name for mutant in chosen))
    return report(chosen, modules)


def mutated_modules() -> list[str]:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config["mutmut"]["only_mutate"].split()


def mutmut(*arguments: str, expected: str = "") -> None:
    """Run mutmut; its spinner is for terminals, so only what it says at the end is shown if it
    fails.

    expected : what it may fail with.
    """
    command = [sys.executable, "-m", "mutmut", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode and not (expected and expected in done.stdout):
        sys.exit(f"mutmut failed:\n{done.stdout[-3000:]}")


def run_whole_files() -> None:
    """Where tests of a file share a fixture, let a mutant be tried by all of them.

    mutmut notes which test ran a function. What a shared fixture does it notes of the first test
    alone that asks for it.
    """
    path = MUTANTS / "mutmut-stats.json"
    stats = json.loads(path.read_text("utf-8"))
    tests_of_file = defaultdict(list)
    for test in stats["duration_by_test"]:
        tests_of_file[test.split("::")[0]].append(test)
    shares = {
        file for file in tests_of_file if 'scope="module"' in (ROOT / file).read_text("utf-8")
    }
    for function, tests in stats["tests_by_mangled_function_name"].items():
        files = {test.split("::")[0] for test in tests} & shares
        whole = {test for file in files for test in tests_of_file[file]}
        stats["tests_by_mangled_function_name"][function] = sorted(whole | set(tests))
    path.write_text(json.dumps(stats), encoding="utf-8")


def sample(module: str, size: int, seed: int) -> list[Mutant]:
    """Mutants of a module, drawn by the seed and the module's name alone, of those that a test
    could see."""
    mutants = [mutant for mutant in mutants_of(module) if mutant.is_visible]
    if len(mutants) <= size:
        return mutants
    return random.Random(f"{seed} {module}").sample(mutants, size)


def mutants_of(module: str) -> Iterator[Mutant]:
    """Every mutant of a module, from the file in which mutmut keeps all of them beside the
    originals."""
    prefix = module.removesuffix(".py").replace("/", ".")
    functions = {}
    for node in ast.walk(ast.parse((MUTANTS / module).read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef) and "__mutmut_" in node.name:
            functions[node.name] = node
    for name, node in functions.items():
        function, number = name.rsplit("__mutmut_", 1)
        if not number.isdecimal():
            continue
        original = functions[f"{function}__mutmut_orig"]
        yield Mutant(
            name=f"{prefix}.{name}",
            module=module,
            function=function.removeprefix("x_").removeprefix("xǁ").replace("ǁ", "."),
            change=difference(original, node),
            is_visible=visible(original) != visible(node),
        )


def difference(original: ast.FunctionDef, mutant: ast.FunctionDef) -> str:
    """The lines that differ, without regard to layout."""
    old, new = (ast.unparse(renamed(node)).splitlines() for node in (original, mutant))
    changed = [line for line in difflib.ndiff(old, new) if line[0] in "-+"]
    return " ".join(f"{line[0]} {line[1:].strip()}" for line in changed)


def renamed(node: ast.FunctionDef) -> ast.FunctionDef:
    """A copy under one name: mutmut gives each mutant a name of its own."""
    copy = ast.parse(ast.unparse(node)).body[0]
    copy.name = "f"
    return copy


class Visible(ast.NodeTransformer):
    """Blanks texts, and None for a text, below a `raise` or a call that warns or reports, and drops
    `strict=`, `device=` and `stacklevel=`."""

    SAYING = (
        "warn",
        "Fault",
        "InputError",
        "MismatchError",
        "StoreDamaged",
        "UsageError",
        "IndexError",
        "ValueError",
    )
    UNSEEN = ("strict", "device", "stacklevel")

    def __init__(self) -> None:
        self._depth = 0

    def visit(self, node: ast.AST) -> ast.AST:
        says = isinstance(node, ast.Raise) or (
            isinstance(node, ast.Call) and called(node) in self.SAYING
        )
        self._depth += says
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str | None)
        if self._depth and (is_text or isinstance(node, ast.JoinedStr)):
            node = ast.Constant("")
        if isinstance(node, ast.Call):
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in self.UNSEEN]
        found = super().generic_visit(node)
        self._depth -= says
        return found


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def visible(node: ast.FunctionDef) -> str:
    """A function as text, without what no test can see."""
    copy = renamed(node)
    if ast.get_docstring(copy):
        copy.body = copy.body[1:]
    return ast.dump(Visible().visit(copy))


def unseen(module: str) -> Iterator[str]:
    """What mutmut leaves alone: decorated functions, and what runs once, when the module or a class
    is made."""
    tree = ast.parse((ROOT / module).read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            yield f"{node.name} (@{ast.unparse(node.decorator_list[0])})"
    for node in tree.body:
        yield from assigned(node, "")
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                yield from assigned(inner, f"{node.name}.")


def assigned(node: ast.stmt, prefix: str) -> Iterator[str]:
    """The names that a statement gives a value."""
    if isinstance(node, ast.Assign):
        yield from (prefix + ast.unparse(target) for target in node.targets)
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        yield prefix + ast.unparse(node.target)


def report(chosen: list[Mutant], modules: list[str]) -> int:
    """Print survivors, then the share found in each module."""
    with open(EQUIVALENT, newline="", encoding="utf-8") as file:
        equivalent = {
            (row["module"], row["function"], row["change"]) for row in csv.DictReader(file)
        }
    codes = {}
    for module in modules:
        codes |= json.loads((MUTANTS / f"{module}.meta").read_text("utf-8"))["exit_code_by_key"]

    lines, short = [], False
    for module in modules:
        of_module = [m for m in chosen if m.module == module]
        judged = [m for m in of_module if (m.module, m.function, m.change) in equivalent]
        counted = [m for m in of_module if m not in judged]
        survivors = [m for m in counted if codes[m.name] in SURVIVED]
        for mutant in survivors:
            print(f"{mutant.module},{mutant.function},{mutant.change}")
        share = 1 - len(survivors) / len(counted) if counted else 1.0
        short |= share < TARGET
        lines.append(f"{module:28} {len(counted):5} {len(judged):10} {share:7.0%}")
    print(f"\n{'module':28} {'tried':>5} {'equivalent':>10} {'found':>7}")
    print("\n".join(lines))
    return int(short)


if __name__ == "__main__":
    sys.exit(main())
