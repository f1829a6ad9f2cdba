"""Rotations and how they change."""

import pytest
import torch

from nanobrag_torch.rotation import cross_matrix, left_jacobian, rotation_from_vector, vector_from_rotation
from tests.reverse import largest_difference, reverse_jacobian
from tests.tolerances import FORWARD_RELATIVE, ROUNDING

AXIS = torch.tensor([0.48, -0.6, 0.64], dtype=torch.float64)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-5, 9e-5, 1.1e-4, 1e-3, 0.1, 1.0, 3.0, 7.0])
def test_a_change_of_a_rotation_is_a_small_rotation(angle):
    v = angle * AXIS
    turn = rotation_from_vector(v)
    (expected,) = reverse_jacobian(lambda v: (rotation_from_vector(v),), v)
    found = (cross_matrix(left_jacobian(v).T) @ turn).permute(1, 2, 0)
    assert largest_difference((found,), (expected,)) < FORWARD_RELATIVE


@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-3, 1.0, 3.0])
def test_a_vector_is_found_again(angle):
    v = angle * AXIS
    assert (vector_from_rotation(rotation_from_vector(v)) - v).abs().max() < 10 * ROUNDING


def test_a_vector_of_no_rotation_has_derivatives():
    (slopes,) = reverse_jacobian(lambda v: (vector_from_rotation(rotation_from_vector(v)),), 0 * AXIS)
    assert (slopes - torch.eye(3, dtype=torch.float64)).abs().max() < ROUNDING
