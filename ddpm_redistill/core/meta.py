"""Passes over the meta device, where tensors have shapes and no values, with the operations and the bytes of a CPU.

``FakeTensorMode`` gives these too, but it takes 100 microseconds for every operation, even for one that it has met
before. Lean execution has 10,000 operations, of which a few hundred differ: here it is asked once for each of those.
Imports torch only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
"""Kinds of arguments, beside tensors and lists, that are told apart by their value."""

New = tuple[torch.Size, tuple[int, ...], torch.dtype]
"""A tensor with memory of its own: shape, stride and dtype."""
Result = tuple[type | None, list[New | int]]
"""What an operation returns: each tensor, new or the index of one that it was given and wrote to; and the type of the
sequence that they come in, None where it is one tensor."""


@contextmanager
def meta_as_cpu(mode: TorchDispatchMode | None = None) -> Iterator[None]:
    """Inside the ``with`` and under no_grad, a network on the meta device runs the operations that it runs on a CPU,
    and their results take as many bytes.

    For networks that choose no device themselves. A tensor made of numbers (``torch.tensor``) is seen by a dispatch
    mode only when an operation reads it.

    Args:
        mode: a dispatch mode that calls ``as_on_cpu`` for each operation and does something more. Without one, a mode
            that does nothing more.
    """
    with _CPUAttention(), mode or _CPUOperations():
        yield


def as_on_cpu(func: Any, args: Any, kwargs: Any) -> Any:
    """``func(*args, **kwargs)`` for a dispatch mode: of meta tensors, with the results that it has on a CPU."""
    if func.is_view or torch.Tag.inplace_view in func.tags:  # torch is quick at these
        return func(*args, **kwargs)
    given: list[Tensor] = []
    key = _key(func, args, kwargs, given)
    if key is None:
        return func(*args, **kwargs)
    if key not in _results:
        _results[key] = _result_on_cpu(func, args, kwargs, given)
    result = _results[key]
    if result is None:
        return func(*args, **kwargs)
    sequence, tensors = result
    made = [given[t] if isinstance(t, int) else _new(*t) for t in tensors]
    return sequence(made) if sequence else made[0]


_results: dict[Any, Result | None] = {}
"""By ``_key``; None where a ``Result`` cannot tell what is returned."""


class _CPUOperations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return as_on_cpu(func, args, kwargs or {})


class _CPUAttention(TorchFunctionMode):
    """On a CPU torch computes attention by a fused operation, on the meta device by several. It chooses between them
    before it asks a dispatch mode, so this one call is made with tensors that say they are on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        args, kwargs = tree_map_only(Tensor, _on_cpu, (args, kwargs))
        with _cpu():
            out = func(*args, **kwargs)
        meta = torch.empty(0, dtype=out.dtype, device="meta")
        return meta.set_(out.untyped_storage(), out.storage_offset(), out.shape, out.stride())


def without_data(t: Tensor, device: str) -> Tensor:
    """A tensor with the shape, stride and dtype of ``t``, on the meta device or, under FakeTensorMode, on any.

    And with its requires_grad: even under no_grad, torch.matmul chooses by it between mm and bmm.
    """
    empty = torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=device)
    return empty.requires_grad_(t.requires_grad)


def _key(func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
    """All that the result depends on, and the tensors among the arguments, each once, in ``given``.

    None where an argument is of an unknown kind, and where no tensor is given: torch makes the new one itself.
    """
    try:
        key = func, torch.get_default_dtype(), _described(args, given), _described(tuple(kwargs.items()), given)
    except _UnknownKindError:
        return None
    return key if given else None


def _described(value: Any, given: list[Tensor]) -> Any:
    kind = type(value)
    if kind in (Tensor, nn.Parameter) and value.is_meta:
        for index, other in enumerate(given):
            if other is value:
                return index
        given.append(value)
        return value.shape, value.stride(), value.dtype
    if kind in (tuple, list):
        return tuple([_described(each, given) for each in value])
    if kind in PLAIN:
        return kind, value  # 1 and 1.0 are equal, and lead to different dtypes
    raise _UnknownKindError


class _UnknownKindError(Exception):
    """An argument whose effect on the result is not known."""


def _result_on_cpu(func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> Result | None:
    fakes = [_on_cpu(_new(t.shape, t.stride(), t.dtype)) for t in given]
    fake_of = {id(t): fake for t, fake in zip(given, fakes, strict=True)}
    args, kwargs = tree_map_only(Tensor, lambda t: fake_of[id(t)], (args, kwargs))
    with _cpu():
        out = func(*args, **kwargs)
    if any((t.shape, t.stride()) != (fake.shape, fake.stride()) for t, fake in zip(given, fakes, strict=True)):
        return None  # a tensor given as `out` was resized
    sequence = None if isinstance(out, Tensor) else type(out)
    if sequence not in (None, tuple, list):
        return None
    index_of = {id(fake): index for index, fake in enumerate(fakes)}
    storages = {fake.untyped_storage()._cdata for fake in fakes}
    tensors: list[New | int] = []
    for t in out if sequence else [out]:
        if id(t) in index_of:
            tensors.append(index_of[id(t)])
            continue
        if not isinstance(t, Tensor) or t.untyped_storage()._cdata in storages:
            return None
        storages.add(t.untyped_storage()._cdata)
        new = t.shape, t.stride(), t.dtype
        if _new(*new).untyped_storage().nbytes() != t.untyped_storage().nbytes():
            return None
        tensors.append(new)
    return sequence, tensors


@cache
def _cpu() -> FakeTensorMode:
    return FakeTensorMode()  # to make one takes 10 milliseconds


def _on_cpu(t: Tensor) -> FakeTensor:
    """A meta tensor as one on a CPU. It has the same storage, so that whoever follows storages recognises it."""
    return FakeTensor(_cpu(), t, torch.device("cpu"))


def _new(shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
