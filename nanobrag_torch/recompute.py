"""Derivatives without their memory: a function of records that is evaluated a second time when it is differentiated."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def tensors_on_graph(record: object) -> list[Tensor]:
    """The tensors within a record, its fields' records, tuples and lists that derivatives flow to, in order."""
    if isinstance(record, Tensor):
        return [record] if record.requires_grad else []
    return [tensor for part in _parts(record) for tensor in tensors_on_graph(part)]


def computed_anew(function: Callable[[Any], tuple[Tensor, Tensor]], record: object) -> tuple[Tensor, Tensor]:
    """function(record): a tensor that is differentiable once, and one (a count) that is not.

    Only the record is kept until its derivatives are asked for; then the function is evaluated again. Tensors that
    `function` reaches by another way than the record get no derivative.
    """
    tensors = tensors_on_graph(record)
    if not torch.is_grad_enabled() or not tensors:
        return function(record)
    result: tuple[Tensor, Tensor] = _Anew.apply(function, record, *tensors)
    return result


class _Anew(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Callable[[Any], tuple[Tensor, Tensor]], record: object, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.function, ctx.record = function, record
        ctx.save_for_backward(*tensors)
        value, count = function(record)
        ctx.mark_non_differentiable(count)
        return value, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, value_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            value, _ = ctx.function(_with_tensors(ctx.record, iter(inputs)))
        gradients = torch.autograd.grad(value, inputs, value_gradient, allow_unused=True)
        return None, None, *gradients


def _parts(record: object) -> list[object]:
    if dataclasses.is_dataclass(record):
        return [getattr(record, field.name) for field in dataclasses.fields(record)]
    return list(record) if isinstance(record, tuple | list) else []


def _with_tensors(record: Any, tensors: Iterator[Tensor]) -> Any:
    """`record` with the tensors of `tensors_on_graph`, in the same order, in the place of its own."""
    if isinstance(record, Tensor):
        return next(tensors) if record.requires_grad else record
    parts = [_with_tensors(part, tensors) for part in _parts(record)]
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        names = [field.name for field in dataclasses.fields(record)]
        return dataclasses.replace(record, **dict(zip(names, parts, strict=True)))
    return type(record)(parts) if isinstance(record, tuple | list) else record
