from dataclasses import dataclass

import torch
from torch import Tensor

from nanobrag_torch.recompute import computed_anew, tensors_on_graph
from tests.nanobrag_torch.scene import vector


@dataclass(frozen=True)
class Inner:
    x: Tensor
    name: str


@dataclass(frozen=True)
class Outer:
    inner: Inner
    pair: tuple[Tensor | float, ...]
    weight: Tensor
    calls: list


def record(x, y):
    return Outer(Inner(x, "x"), (y, 2.0), vector(3.0), [])


def weighted(r):
    r.calls.append(torch.is_grad_enabled())
    return r.weight * r.inner.x**2 * r.pair[0] ** r.pair[1], torch.tensor(len(r.calls))


def test_derivatives_are_those_of_the_function_and_it_is_evaluated_twice():
    x, y = vector(2.0).requires_grad_(), vector(5.0).requires_grad_()
    r = record(x, y)
    assert [id(t) for t in tensors_on_graph(r)] == [id(x), id(y)]
    value, count = computed_anew(weighted, r)
    assert (value.item(), count.item(), count.requires_grad) == (300.0, 1, False)
    dx, dy = torch.autograd.grad(value, (x, y))
    assert (dx.item(), dy.item()) == (300.0, 120.0)


def test_the_function_is_evaluated_without_a_graph_first():
    r = record(vector(2.0).requires_grad_(), vector(5.0))
    computed_anew(weighted, r)
    assert r.calls == [False]


def test_gradcheck_through_recomputation():
    arguments = (vector(2.0).requires_grad_(), vector(5.0).requires_grad_())
    assert torch.autograd.gradcheck(lambda x, y: computed_anew(weighted, record(x, y))[0], arguments)


def test_without_derivatives_the_function_is_simply_called():
    value, _ = computed_anew(weighted, record(vector(2.0), vector(5.0)))
    assert not value.requires_grad
    with torch.no_grad():
        assert not computed_anew(weighted, record(vector(2.0).requires_grad_(), vector(5.0)))[0].requires_grad
