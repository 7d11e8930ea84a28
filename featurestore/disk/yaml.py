"""YAML of plain values, written and read: no tags, aliases, dates or keys that are given twice."""

import reprlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from featurestore.errors import InputError, NoAccessError


class _PlainLoader(yaml.SafeLoader):
    """YAML without tags, aliases, dates, or keys that are given twice."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.tag is not None:
            raise yaml.MarkedYAMLError(
                problem="tags and aliases are not plain values", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag != self.DEFAULT_SCALAR_TAG:
                raise yaml.MarkedYAMLError(
                    problem="a key must be a word, or in quotes", problem_mark=key.start_mark
                )
            if key.value in lines:
                problem = (
                    f"key {key.value!r} is there twice, in lines {lines[key.value]} and {line}"
                )
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def as_yaml(value: Any, **style: Any) -> str:
    """The YAML of plain values, as `yaml.safe_dump` gives it."""
    text = "\\"
    with suppress(UnicodeEncodeError):  # a path that is not UTF-8, which PyYAML itself escapes
        # libyaml's, where PyYAML was built with it: in a quarter of the time
        text = yaml.dump(value, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), **style)
    # the same text, but for where a line with escapes is folded
    return yaml.safe_dump(value, **style) if "\\" in text else text


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file of plain values under unique keys.

    InputError for anything else names file and line.
    """
    try:
        raw = yaml.load(path.read_bytes(), Loader=_PlainLoader)
    except PermissionError as err:
        raise NoAccessError.of(err, path) from err
    except OSError as err:
        raise InputError(f"{path}: cannot be read ({err.strerror})") from err
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise InputError(f"{path}: not a plain YAML config: {err.problem}{where}") from err
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as err:
        # bytes, `0x_`, many `:1`, many `[`
        raise InputError(f"{path}: not a plain YAML config: {err}") from err
    if not isinstance(raw, dict):
        raise InputError(f"{path}: found {reprlib.repr(raw)}, expected keys and values")
    return raw
