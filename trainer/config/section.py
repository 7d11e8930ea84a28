"""What every section of a sweep's YAML is made of: the strict base model, and kinds of numbers."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo


def _number(value: Any) -> Any:
    """`2e-3` is text to PyYAML (YAML 1.1 wants a dot); where the schema says number, it is one."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value  # pydantic's refusal names what was found


Number = Annotated[float, BeforeValidator(_number)]
PositiveNumber = Annotated[Number, Field(gt=0)]
Weight = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
BelowOne = Annotated[Number, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
CountFromZero = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """Frozen, nothing unknown, and strict: a bool is not a number, a number is not a string."""

    # what a field means is read from its source where a page asks for it (`reference`): pydantic
    # would read all sources at every start
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def fields_of(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted key and field of everything that is no section, in order."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from fields_of(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field
