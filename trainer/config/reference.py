"""Every key of a sweep's YAML, its default and meaning; `python -m trainer.config.reference`."""

import ast
import inspect
import json
from itertools import pairwise

from trainer.config.section import Section, fields_of
from trainer.config.sections import PointConfig

HEAD = """# The keys of a sweep's YAML

The least a config needs (`biomass train --config FILE --store features.h5`):

```yaml
experiment: {name: first, seed: 0}
head: {kind: [density, ridge]}
optimization: {lr: [1e-3, 3e-3], weight_decay: 1e-2}
```

A list in place of a single value is an axis of the grid; so is a list of lists in place of a list.
A run's `config.yaml` has every key with the value it was trained with. `python -m
trainer.config.reference` prints this page.

| key | default | meaning |
| --- | --- | --- |
"""


def reference() -> str:
    """The page, Markdown."""
    page = HEAD
    meant = meanings(PointConfig)
    for key, field in fields_of(PointConfig):
        default = "needed" if field.is_required() else f"`{json.dumps(field.default)}`"
        meaning = " ".join(meant[key].split()).replace("|", "\\|")
        page += f"| `{key}` | {default} | {meaning} |\n"
    return page


def meanings(section: type[Section], prefix: str = "") -> dict[str, str]:
    """The text below each field in a section's source, by dotted key; "" for a field without."""
    (source,) = ast.parse(inspect.getsource(section)).body
    told = {}
    for field, below in pairwise(source.body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            told[field.target.id] = ast.literal_eval(below.value)

    found = {}
    for name, field in section.model_fields.items():
        found[f"{prefix}{name}"] = told.get(name, "")
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= meanings(field.annotation, f"{prefix}{name}.")
    return found


if __name__ == "__main__":
    print(reference(), end="")
