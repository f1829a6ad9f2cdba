import pytest
import torch

from nanobrag_torch.structure_factors import from_list, nearest, tricubic
from tests import tolerances
from tests.nanobrag_torch.scene import hkl_box, vector


def polynomial(hkl):
    """A cubic in h, k and l, which four nodes along each axis determine."""
    h, k, l = hkl.double().unbind(-1)
    return 200 + 3 * h - k + 0.5 * h * k * l - 0.2 * h**3 + 0.1 * k**2 * l + 0.05 * l**3


def test_listed_amplitudes_are_found_and_others_are_the_default():
    sf = from_list(torch.tensor([[1, 2, 3], [-1, 0, 2]]), vector(10.0, 20.0), default_F=7.0)
    assert nearest(sf, torch.tensor([[1, 2, 3], [-1, 0, 2], [0, 1, 2], [50, 0, 0]])).tolist() == [10.0, 20.0, 7.0, 7.0]
    assert int(sf.known.sum()) == 2
    assert sf.hkl_min == (-1, 0, 2)


def test_an_empty_list_is_a_constant():
    sf = from_list(torch.zeros(0, 3, dtype=torch.int64), vector(), default_F=5.0)
    assert nearest(sf, torch.tensor([[0, 0, 0], [3, -2, 1]])).tolist() == [5.0, 5.0]
    value, fell_back = tricubic(sf, vector(0.2, 0.3, 0.4)[None])
    assert (value.item(), fell_back.item()) == (5.0, True)


def test_friedel_mates_are_apart_unless_asked():
    hkl, F = torch.tensor([[1, 2, 3], [2, 0, 0], [-2, 0, 0]]), vector(10.0, 20.0, 30.0)
    query = torch.tensor([[-1, -2, -3], [2, 0, 0], [-2, 0, 0]])
    assert nearest(from_list(hkl, F), query).tolist() == [0.0, 20.0, 30.0]
    assert nearest(from_list(hkl, F, friedel_symmetric=True), query).tolist() == [10.0, 20.0, 30.0]


def test_an_index_listed_twice_must_agree():
    hkl = torch.tensor([[1, 2, 3], [0, 0, 1], [1, 2, 3]])
    with pytest.raises(ValueError, match=r"hkl \(1, 2, 3\) is listed twice with different amplitudes \(1 such"):
        from_list(hkl, vector(10.0, 1.0, 11.0))
    F = vector(10.0, 1.0, 10.0).requires_grad_()
    found = nearest(from_list(hkl, F), hkl[:1]).sum()
    assert found.item() == 10.0
    assert torch.autograd.grad(found, F)[0].tolist() == [0.5, 0.0, 0.5]


def test_a_cubic_is_interpolated_exactly():
    sf = from_list(hkl_box(4), polynomial(hkl_box(4)))
    hkl = torch.rand(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 6 - 3
    found, fell_back = tricubic(sf, hkl)
    assert not fell_back.any()
    assert (found - polynomial(hkl)).abs().max() < 1e4 * tolerances.ROUNDING


def test_on_a_node_interpolation_is_the_node():
    sf = from_list(hkl_box(3), polynomial(hkl_box(3)))
    nodes = hkl_box(1)
    found, fell_back = tricubic(sf, nodes.double())
    assert not fell_back.any()
    assert (found - nearest(sf, nodes)).abs().max() < 1e3 * tolerances.ROUNDING


def test_where_a_node_is_missing_only_that_term_falls_back_and_is_counted():
    sf = from_list(hkl_box(3), polynomial(hkl_box(3)), default_F=9.0)
    hkl = vector(0.4, 0.4, 0.4).expand(5, 3) + torch.tensor([[0, 0, 0], [2, 0, 0], [0, -3, 0], [0, 0, 1], [7, 0, 0]])
    found, fell_back = tricubic(sf, hkl)
    assert fell_back.tolist() == [False, True, True, False, True]
    assert found[[1, 2, 4]].tolist() == nearest(sf, torch.tensor([[2, 0, 0], [0, -3, 0], [7, 0, 0]])).tolist()
    assert found[4].item() == 9.0
    assert torch.allclose(found[[0, 3]], polynomial(hkl[[0, 3]]))


def test_amplitudes_and_default_are_differentiable():
    hkl = hkl_box(2)
    query = torch.tensor([[0, 1, 0], [9, 9, 9]])
    fractional = vector(0.3, -0.2, 0.6, 0.0, 0.4, -0.7).reshape(2, 3).requires_grad_()

    def f(F, default_F, at):
        sf = from_list(hkl, F, default_F=default_F)
        return torch.cat([nearest(sf, query), tricubic(sf, at)[0]])

    F = (polynomial(hkl) / 100).requires_grad_()
    default_F = vector(2.0)[0].requires_grad_()
    assert torch.autograd.gradcheck(f, (F, default_F, fractional))
    gradients = torch.autograd.grad(f(F, default_F, fractional).sum(), (F, default_F, fractional))
    assert all((gradient != 0).any() for gradient in gradients)
