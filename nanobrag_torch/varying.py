"""Tensors that carry their derivatives by a few parameters along: forward differentiation of many numbers at once.

The derivatives of a tensor (...) by n parameters are a tensor (..., n) beside it, so that the rule of a function is one
or two more operations of the same kind on all parameters together. Models are made of hundreds of operations on a few
numbers each, where what counts is how many there are: a reverse pass and its derivative take three times as many, and
torch's own forward mode goes through Python for most.

`RULES` holds what the models need. Any other function of a varying tensor raises, and never loses a derivative.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor


class Varying:
    """A tensor `value` (...) with its derivatives `slopes` (..., n), which takes a tensor's place where a function is
    differentiated."""

    __slots__ = ("slopes", "value")

    def __init__(self, value: Tensor, slopes: Tensor) -> None:
        self.value, self.slopes = value, slopes

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """A tensor, for all that ask whether it is one."""
        return Tensor

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What a function of tensors is, some of which vary."""
        name = func.__name__
        if name in RULES:
            return RULES[name](*args, **(kwargs or {}))
        if name in CONSTANT:
            return func(*map(plain, args), **(kwargs or {}))
        raise NotImplementedError(f"{name} of a tensor that varies: nanobrag_torch.varying has no rule for it")

    def __getattr__(self, name: str) -> Any:
        if name in RULES:
            return partial(RULES[name], self)
        if name in CONSTANT:
            return getattr(self.value, name)
        raise AttributeError(f"{name} of a tensor that varies: nanobrag_torch.varying has no rule for it")

    @property
    def shape(self) -> torch.Size:
        """The shape of the value."""
        return self.value.shape

    @property
    def dtype(self) -> torch.dtype:
        """The type of the numbers."""
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.value.device

    @property
    def T(self) -> "Varying":
        """The transposed matrix."""
        return Varying(self.value.T, self.slopes.transpose(0, 1))

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, index: Any) -> "Varying":
        return _getitem(self, index)

    def __neg__(self) -> "Varying":
        return Varying(-self.value, -self.slopes)

    def __add__(self, other: Any) -> "Varying":
        return _add(self, other)

    def __radd__(self, other: Any) -> "Varying":
        return _add(self, other)

    def __sub__(self, other: Any) -> "Varying":
        return _sub(self, other)

    def __rsub__(self, other: Any) -> "Varying":
        return _sub(other, self)

    def __mul__(self, other: Any) -> "Varying":
        return _mul(self, other)

    def __rmul__(self, other: Any) -> "Varying":
        return _mul(self, other)

    def __truediv__(self, other: Any) -> "Varying":
        return _div(self, other)

    def __rtruediv__(self, other: Any) -> "Varying":
        return _div(other, self)

    def __pow__(self, exponent: float) -> "Varying":
        return _pow(self, exponent)

    def __matmul__(self, other: Any) -> "Varying":
        return _matmul(self, other)

    def __lt__(self, other: Any) -> Tensor:
        return self.value < plain(other)

    def __gt__(self, other: Any) -> Tensor:
        return self.value > plain(other)

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        return self.value == plain(other)


def slopes_of(value: Any, n: int) -> Tensor:
    """The derivatives (..., n) of any tensor, 0 where it does not vary."""
    if isinstance(value, Varying):
        return value.slopes
    zero: Tensor = value.new_zeros(*value.shape, n)
    return zero


def plain(value: Any) -> Any:
    """The tensor alone, and anything else as it is."""
    return value.value if isinstance(value, Varying) else value


def _within(dim: int) -> int:
    """The axis of slopes that is this one of a tensor."""
    return dim if dim >= 0 else dim - 1


def _beside(value: Tensor) -> Tensor:
    """A tensor (...) as a factor of slopes (..., n)."""
    return value.unsqueeze(-1) if value.ndim else value


def _count(tensors: Sequence[Any]) -> int:
    return next(t.slopes.shape[-1] for t in tensors if isinstance(t, Varying))


def _unary(function: Callable[[Tensor], Tensor], factor: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Varying]:
    """The rule of f(a), whose derivative is `factor(a, f(a))`."""

    def rule(a: Varying) -> Varying:
        value = a.value
        result = function(value)
        return Varying(result, _beside(factor(value, result)) * a.slopes)

    return rule


def _add(a: Any, b: Any) -> Varying:
    if not isinstance(b, Varying):
        result = a.value + b
        return Varying(result, a.slopes if result.shape == a.value.shape else a.slopes.expand(*result.shape, -1))
    if not isinstance(a, Varying):
        return _add(b, a)
    return Varying(a.value + b.value, a.slopes + b.slopes)


def _sub(a: Any, b: Any) -> Varying:
    if not isinstance(b, Varying):
        return _add(a, -b)
    if not isinstance(a, Varying):
        return _add(-b, a)
    return Varying(a.value - b.value, a.slopes - b.slopes)


def _mul(a: Any, b: Any) -> Varying:
    if not isinstance(b, Varying):
        return Varying(a.value * b, a.slopes * (_beside(b) if isinstance(b, Tensor) else b))
    if not isinstance(a, Varying):
        return _mul(b, a)
    u, v = a.value, b.value
    return Varying(u * v, torch.addcmul(_beside(u) * b.slopes, _beside(v), a.slopes))


def _div(a: Any, b: Any) -> Varying:
    if not isinstance(b, Varying):
        return _mul(a, 1 / b) if not isinstance(b, Tensor) else Varying(a.value / b, a.slopes / _beside(b))
    v = b.value
    if not isinstance(a, Varying):
        result = a / v
        return Varying(result, _beside(-result / v) * b.slopes)
    result = a.value / v
    return Varying(result, torch.addcmul(a.slopes, _beside(result), b.slopes, value=-1) / _beside(v))


def _pow(a: Varying, exponent: float) -> Varying:
    value = a.value
    slope = 2 * value if exponent == 2 else exponent * value ** (exponent - 1)
    return Varying(value**exponent, _beside(slope) * a.slopes)


def _matmul(a: Any, b: Any) -> Varying:
    u, v = plain(a), plain(b)
    found = []
    if isinstance(a, Varying):
        found.append(_left(a.slopes, v))
    if isinstance(b, Varying):
        found.append(_right(u, b.slopes, v.ndim))
    return Varying(u @ v, found[0] if len(found) == 1 else found[0] + found[1])


def _left(slopes: Tensor, v: Tensor) -> Tensor:
    """Derivatives of a @ v by those of a (..., j, n)."""
    if v.ndim == 1:
        return v @ slopes if slopes.ndim == 2 else (v[None] @ slopes)[..., 0, :]
    return v.transpose(-1, -2) @ slopes if v.ndim == 2 else v.transpose(-1, -2)[..., None, :, :] @ slopes


def _right(u: Tensor, slopes: Tensor, ndim: int) -> Tensor:
    """Derivatives of u @ b by those of b, of `ndim` axes."""
    if ndim == 1:
        return u @ slopes
    result = u @ slopes.flatten(-2)
    return result.unflatten(-1, slopes.shape[-2:])


def _cross(a: Any, b: Any, dim: int = -1) -> Varying:
    u, v = plain(a), plain(b)
    result = torch.linalg.cross(u, v, dim=dim)
    slopes: Any = 0
    if isinstance(a, Varying):
        slopes = torch.linalg.cross(a.slopes, v[..., None], dim=_within(dim))
    if isinstance(b, Varying):
        slopes = slopes + torch.linalg.cross(u[..., None], b.slopes, dim=_within(dim))
    return Varying(result, slopes)


def _norm(a: Varying, *, dim: int, keepdim: bool = False) -> Varying:
    value = plain(a)
    result = torch.linalg.vector_norm(value, dim=dim, keepdim=True)
    slopes = ((value / result)[..., None] * a.slopes).sum(_within(dim), keepdim=True)
    if keepdim:
        return Varying(result, slopes)
    return Varying(result.squeeze(dim), slopes.squeeze(_within(dim)))


def _where(condition: Tensor, a: Any, b: Any) -> Varying:
    n = _count((a, b))
    result = torch.where(condition, plain(a), plain(b))
    return Varying(result, torch.where(condition[..., None], slopes_of(a, n), slopes_of(b, n)))


def _clamp_min(a: Varying, least: float) -> Varying:
    value = plain(a)
    return Varying(value.clamp_min(least), a.slopes * (value >= least)[..., None])


def _atan2(a: Any, b: Any) -> Varying:
    u, v = plain(a), plain(b)
    n = _count((a, b))
    change = v[..., None] * slopes_of(a, n) - u[..., None] * slopes_of(b, n)
    return Varying(torch.atan2(u, v), change / (u**2 + v**2)[..., None])


def _stack(tensors: Sequence[Any], dim: int = 0) -> Varying:
    n = _count(tensors)
    slopes = torch.stack([slopes_of(t, n) for t in tensors], _within(dim))
    return Varying(torch.stack([plain(t) for t in tensors], dim), slopes)


def _cat(tensors: Sequence[Any], dim: int = 0) -> Varying:
    n = _count(tensors)
    slopes = torch.cat([slopes_of(t, n) for t in tensors], _within(dim))
    return Varying(torch.cat([plain(t) for t in tensors], dim), slopes)


def _unbind(a: Varying, dim: int = 0) -> tuple[Varying, ...]:
    parts = zip(plain(a).unbind(dim), a.slopes.unbind(_within(dim)), strict=True)
    return tuple(Varying(value, slopes) for value, slopes in parts)


def _split(a: Varying, size: Any, dim: int = 0) -> tuple[Varying, ...]:
    parts = zip(plain(a).split(size, dim), a.slopes.split(size, _within(dim)), strict=True)
    return tuple(Varying(value, slopes) for value, slopes in parts)


def _sum(a: Varying, dim: int | None = None, keepdim: bool = False) -> Varying:
    if dim is None:
        return Varying(plain(a).sum(), a.slopes.flatten(0, -2).sum(0) if a.ndim else a.slopes)
    return Varying(plain(a).sum(dim, keepdim), a.slopes.sum(_within(dim), keepdim))


def _mean(a: Varying) -> Varying:
    return _div(_sum(a), a.numel())


def _getitem(a: Varying, index: Any) -> Varying:
    index = index if isinstance(index, tuple) else (index,)
    inner = (*index, slice(None)) if any(i is Ellipsis for i in index) else index
    return Varying(plain(a)[index], a.slopes[inner])


def _shaped(name: str) -> Callable[..., Varying]:
    """The rule of a method that takes shapes, as `view` does."""

    def rule(a: Varying, *shape: int) -> Varying:
        return Varying(getattr(plain(a), name)(*shape), getattr(a.slopes, name)(*shape, a.slopes.shape[-1]))

    return rule


def _along(name: str) -> Callable[..., Varying]:
    """The rule of a method whose arguments are axes."""

    def rule(a: Varying, *dims: int) -> Varying:
        return Varying(getattr(plain(a), name)(*dims), getattr(a.slopes, name)(*map(_within, dims)))

    return rule


def _flatten(a: Varying, start: int = 0) -> Varying:
    return Varying(plain(a).flatten(start), a.slopes.flatten(_within(start), -2) if a.ndim else a.slopes[None])


def _unflatten(a: Varying, dim: int, sizes: Sequence[int]) -> Varying:
    return Varying(plain(a).unflatten(dim, sizes), a.slopes.unflatten(_within(dim), sizes))


def _expand_as(a: Varying, other: Tensor) -> Varying:
    return Varying(plain(a).expand_as(other), a.slopes.expand(*other.shape, -1))


def _logsumexp(a: Varying, dim: int) -> Varying:
    share = torch.softmax(a.value, dim)
    return Varying(torch.logsumexp(a.value, dim), (share[..., None] * a.slopes).sum(_within(dim)))


def _index_copy(a: Any, dim: int, index: Tensor, source: Varying) -> Varying:
    slopes = slopes_of(a, source.slopes.shape[-1]).index_copy(dim, index, source.slopes)
    return Varying(plain(a).index_copy(dim, index, plain(source)), slopes)


def _index_select(a: Varying, dim: int, index: Tensor) -> Varying:
    return Varying(a.value.index_select(dim, index), a.slopes.index_select(_within(dim), index))


def _outer(a: Any, b: Any) -> Varying:
    return _mul(a[:, None], b)


def _trace(a: Varying) -> Varying:
    return Varying(plain(a).trace(), a.slopes.diagonal(dim1=0, dim2=1).sum(-1))


def _diagonal(a: Varying, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Varying:
    value = plain(a).diagonal(offset, dim1, dim2)
    return Varying(value, a.slopes.diagonal(offset, _within(dim1), _within(dim2)).transpose(-1, -2))


def _diag(a: Varying) -> Varying:
    return Varying(torch.diag(plain(a)), torch.diag_embed(a.slopes.T, dim1=0, dim2=1))


def _same(a: Varying, *_: Any, **__: Any) -> Varying:
    return a


#: Functions and attributes that do not depend on the numbers of a tensor, or only by steps.
CONSTANT = {
    *(
        "ndim",
        "size",
        "dim",
        "numel",
        "zeros_like",
        "ones_like",
        "full_like",
        "new_zeros",
        "new_ones",
        "sign",
        "detach",
    ),
    *("lt", "gt", "le", "ge", "eq", "ne"),
}
#: Derivatives of functions and methods by their names.
RULES: dict[str, Callable[..., Any]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "pow": _pow,
    "matmul": _matmul,
    "neg": Varying.__neg__,
    "exp": _unary(torch.exp, lambda a, y: y),
    "expm1": _unary(torch.expm1, lambda a, y: y + 1),
    "log": _unary(torch.log, lambda a, y: 1 / a),
    "log1p": _unary(torch.log1p, lambda a, y: 1 / (1 + a)),
    "sqrt": _unary(torch.sqrt, lambda a, y: 0.5 / y),
    "sin": _unary(torch.sin, lambda a, y: torch.cos(a)),
    "cos": _unary(torch.cos, lambda a, y: -torch.sin(a)),
    "sinh": _unary(torch.sinh, lambda a, y: torch.cosh(a)),
    "abs": _unary(torch.abs, lambda a, y: torch.sign(a)),
    "log_sigmoid": _unary(torch.nn.functional.logsigmoid, lambda a, y: -torch.expm1(y)),
    "logsumexp": _logsumexp,
    "linalg_cross": _cross,
    "linalg_vector_norm": _norm,
    "where": _where,
    "clamp_min": _clamp_min,
    "atan2": _atan2,
    "stack": _stack,
    "cat": _cat,
    "unbind": _unbind,
    "split": _split,
    "sum": _sum,
    "mean": _mean,
    "__getitem__": _getitem,
    **{name: _shaped(name) for name in ("view", "reshape", "expand")},
    **{name: _along(name) for name in ("transpose", "squeeze", "unsqueeze")},
    "flatten": _flatten,
    "unflatten": _unflatten,
    "expand_as": _expand_as,
    "index_copy": _index_copy,
    "index_select": _index_select,
    "outer": _outer,
    "trace": _trace,
    "diagonal": _diagonal,
    "diag": _diag,
    "to": _same,
}
