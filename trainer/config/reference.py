"""Every key of a sweep's YAML, its default and meaning; `python -m trainer.config.reference`."""

import json

from trainer.config.section import fields_of
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
    for key, field in fields_of(PointConfig):
        default = "needed" if field.is_required() else f"`{json.dumps(field.default)}`"
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        page += f"| `{key}` | {default} | {meaning} |\n"
    return page


if __name__ == "__main__":
    print(reference(), end="")
