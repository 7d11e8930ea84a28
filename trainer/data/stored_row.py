"""A stored row as a tensor that is read in place and refuses to be written to.

The store's file is mapped read-only, and torch knows no read-only memory: a write into a row would
end the process (SIGSEGV). Rows that are kept on a device would change for every later epoch.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from featurestore.errors import UsageError


class StoredRow(Tensor):
    """(T, P, D) float16 tokens of a stored row, or a view of them; UsageError from any operation
    that would write to them.

    Otherwise it works like any tensor, also in autograd and under `torch.compile`. Views of it
    refuse writes too. Whatever is computed from it is a plain tensor, and so is a pickled or deep
    copy. `numpy()` returns a read-only array.

    `data_ptr()`, `untyped_storage()` and DLPack hand out the bare memory, which nothing guards.

    Each operation on a row takes some 25 us longer (of a full-size row: summing its words 1.02 to
    1.05 x, `row.float() @ weight` 1.00; page cache warm, one core of an AMD EPYC on which others
    worked too, medians of 60 to 300 rows that take turns).

    Source: https://docs.pytorch.org/docs/stable/notes/extending.html, "Extending torch native API".
    An inference tensor would not do: torch refuses a write to it only after writing (seen with
    2.14).
    """

    # operations are seen below, in __torch_dispatch__, where a schema says what each of them writes
    # to
    __torch_function__ = torch._C._disabled_torch_function_impl
    _plain: Tensor
    """The same memory as an ordinary tensor."""

    @classmethod
    def of(cls, plain: Tensor) -> Self:
        """The same memory, guarded; nothing is copied."""
        if type(plain) is Tensor:
            row = Tensor._make_subclass(cls, plain)
        else:  # torch.compile traces with tensors that have no memory
            layout = {"strides": plain.stride(), "storage_offset": plain.storage_offset()}
            kind = {"dtype": plain.dtype, "device": plain.device}
            row = Tensor._make_wrapper_subclass(cls, plain.size(), **layout, **kind)
        row._plain = plain
        return row

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Any,
        args: Sequence = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        written, gives_views = _effects(func)
        for position, name in written:
            target = args[position] if position < len(args) else kwargs.get(name)
            targets = target if isinstance(target, list | tuple) else [target]
            if any(isinstance(each, StoredRow) for each in targets):
                raise UsageError(
                    f"{func.overloadpacket.__name__}: would write into a row of "
                    "MixupBatches(lazy=True), which is the store's own memory and is only read; "
                    "use an operation that returns a new tensor (row * 0.5 in place of "
                    "row.mul_(0.5)), or write into row.clone()"
                )

        memory_args = [_each(_memory_of, value) for value in args]
        memory_kwargs = {name: _each(_memory_of, value) for name, value in kwargs.items()}
        out = func(*memory_args, **memory_kwargs)
        if not gives_views:
            return out
        # a view is the same memory, so it is guarded too
        return _each(lambda x: StoredRow.of(x) if isinstance(x, Tensor) else x, out)

    def numpy(self, *, force: bool = False) -> np.ndarray:
        """A read-only array of the same memory."""
        array = self._plain.numpy(force=force)
        array.flags.writeable = False
        return array

    def tolist(self) -> Any:
        return self._plain.tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return repr(self._plain)

    def __copy__(self) -> Self:
        return StoredRow.of(self._plain)

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._plain.__reduce_ex__(protocol)

    # by these two torch.compile takes a row apart and puts a view together

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["_plain"], None

    @staticmethod
    def __tensor_unflatten__(
        inner: Mapping[str, Tensor],
        meta: None,
        size: Any,
        stride: Any,
    ) -> "StoredRow":
        return StoredRow.of(inner["_plain"])


@functools.cache
def _effects(func: Any) -> tuple[list[tuple[int, str]], bool]:
    """Position and name of the arguments an operation writes to; whether it returns views."""
    written = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info and argument.alias_info.is_write:
            written.append((position, argument.name))
    gives_views = any(result.alias_info for result in func._schema.returns)
    return written, gives_views and not written


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """An operation's argument or result, changed; of a list of tensors each member."""
    return [change(x) for x in value] if isinstance(value, list | tuple) else change(value)


def _memory_of(value: Any) -> Any:
    """A row's memory as an ordinary tensor, whatever else as it is."""
    return value._plain if isinstance(value, StoredRow) else value
