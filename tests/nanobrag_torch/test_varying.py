"""The rules by which derivatives are carried along, each against the reverse mode."""

import pytest
import torch

from nanobrag_torch.jacobian import jacobian
from nanobrag_torch.varying import RULES
from tests.reverse import largest_difference, reverse_jacobian
from tests.tolerances import ROUNDING

X = torch.tensor([0.3, 0.7, 1.1, 1.9, 2.3, 3.1], dtype=torch.float64)
FIXED = torch.tensor([[0.5, -1.5, 2.5], [1.25, 0.75, -0.5]], dtype=torch.float64)
SQUARE = torch.tensor([[1.0, 0.5, 0.2], [0.1, 2.0, 0.3], [0.4, 0.6, 3.0]], dtype=torch.float64)
BATCH = torch.stack([SQUARE, SQUARE.T + 1])
PLACES = torch.tensor([3, 1])


def matrix(x):
    return x.view(2, 3)


def batch(x):
    return torch.stack([x[:3], x[3:], x[::2], x[1::2], x[:3] * x[3:], x[1:4]]).view(2, 3, 3)


#: By the rules that each is for: functions of six numbers, with operands that vary, that do not, and of other shapes.
CASES = {
    "add": lambda x: (x + x.sum(), x + 2, FIXED[0] + x[:3], matrix(x) + x[:3], FIXED + x[:3], x[0] + FIXED),
    "sub": lambda x: (x - x[0], x - 2, FIXED - x[:3], 2 - x, x[0] - FIXED, matrix(x) - x[:3], FIXED[0].sub(x[:3])),
    "mul": lambda x: (x * x[0], 3 * x, matrix(x) * FIXED, FIXED * x[:3], x[0] * FIXED, matrix(x)[..., None] * x[:3]),
    "div": lambda x: (
        x / x[0],
        x / 3,
        matrix(x) / FIXED,
        FIXED / x[:3],
        x[0] / FIXED,
        matrix(x) / x[:3],
        x[:3] / FIXED,
    ),
    "pow": lambda x: (x**2, x**-0.5, x**3, x.pow(2)),
    "matmul": lambda x: (
        *(matrix(x) @ SQUARE, SQUARE @ matrix(x).T, matrix(x) @ x[:3], FIXED @ x[:3], x[:3] @ SQUARE, x[:3] @ x[3:]),
        *(
            batch(x) @ SQUARE,
            SQUARE @ batch(x),
            batch(x) @ BATCH,
            BATCH @ batch(x),
            batch(x) @ batch(x).transpose(1, 2),
        ),
        *(batch(x) @ x[:3], BATCH @ x[:3], matrix(x)[:, None] @ BATCH, matrix(x) @ matrix(x).T, batch(x) @ FIXED[0]),
    ),
    "neg": lambda x: (-x, torch.neg(x)),
    **{
        name: lambda x, name=name: (getattr(torch, name)(x), getattr(matrix(x), name)())
        for name in ("exp", "expm1", "log", "log1p", "sqrt", "sin", "cos", "sinh")
    },
    "abs": lambda x: (torch.abs(x - 1),),
    "clamp_min": lambda x: (x.clamp_min(1.0), matrix(x).clamp_min(2.0)),
    "log_sigmoid": lambda x: (torch.nn.functional.logsigmoid(x - 1),),
    "logsumexp": lambda x: (torch.logsumexp(matrix(x), 0), torch.logsumexp(matrix(x), -1)),
    "linalg_cross": lambda x: (
        *(torch.linalg.cross(x[:3], x[3:]), torch.linalg.cross(FIXED, matrix(x)), torch.linalg.cross(x[:3], FIXED[0])),
        *(torch.linalg.cross(batch(x), BATCH, dim=1), torch.linalg.cross(BATCH, batch(x), dim=1)),
    ),
    "linalg_vector_norm": lambda x: (
        torch.linalg.vector_norm(matrix(x), dim=-1),
        torch.linalg.vector_norm(matrix(x), dim=0, keepdim=True),
    ),
    "where": lambda x: (
        torch.where(x > 1, x, x**2),
        torch.where(FIXED > 0, matrix(x), FIXED),
        torch.where(x < 1, X, x),
    ),
    "atan2": lambda x: (torch.atan2(x[:3], x[3:]), torch.atan2(FIXED, matrix(x)), torch.atan2(matrix(x), FIXED)),
    "stack": lambda x: (torch.stack([x[:3], FIXED[0]]), torch.stack([FIXED, matrix(x)], -1), torch.stack([x[0], x[1]])),
    "cat": lambda x: (torch.cat([x, X]), torch.cat([FIXED, matrix(x)], -1), torch.cat([matrix(x), FIXED], 1)),
    "unbind": lambda x: (*x.unbind(), *matrix(x).unbind(-1), *matrix(x).unbind(1)),
    "split": lambda x: (*x.split(2), *matrix(x).split([1, 2], -1), *torch.split(matrix(x), 1)),
    "sum": lambda x: (x.sum(), matrix(x).sum(), matrix(x).sum(-1), matrix(x).sum(0, keepdim=True), x[0].sum()),
    "mean": lambda x: (x.mean(), matrix(x).mean()),
    "__getitem__": lambda x: (
        *(x[2], x[1:3], matrix(x)[..., None], matrix(x)[:, 1], matrix(x)[None], matrix(x)[..., -1], x[PLACES]),
        *(matrix(x)[PLACES - 1 > 1], batch(x)[..., 1, 2], batch(x)[:, None, ..., 0], torch.stack(list(x))),
    ),
    "view": lambda x: (x.view(3, 2), x.view(-1, 2)),
    "reshape": lambda x: (matrix(x).T.reshape(-1), x.reshape(2, -1)),
    "expand": lambda x: (x.expand(2, 6), x[0].expand(3), matrix(x)[:, None].expand(-1, 4, -1)),
    "expand_as": lambda x: (x[:3].expand_as(FIXED), x[0].expand_as(FIXED)),
    "transpose": lambda x: (matrix(x).transpose(0, 1), batch(x).transpose(-1, -2), batch(x).transpose(0, -1)),
    "squeeze": lambda x: (x[None].squeeze(0), x[:, None].squeeze(-1)),
    "unsqueeze": lambda x: (x.unsqueeze(0), matrix(x).unsqueeze(-1), matrix(x).unsqueeze(1)),
    "flatten": lambda x: (matrix(x).flatten(), batch(x).flatten(1), batch(x).flatten(-2), x[0].flatten()),
    "unflatten": lambda x: (x.unflatten(0, (2, 3)), x[None].unflatten(-1, (3, 2))),
    "T": lambda x: (matrix(x).T,),
    "index_select": lambda x: (x.index_select(0, PLACES), matrix(x).index_select(-1, PLACES % 3)),
    "index_copy": lambda x: (X.index_copy(0, PLACES, x[:2]), x.index_copy(0, PLACES, x[4:] ** 2)),
    "outer": lambda x: (torch.outer(x, x), torch.outer(FIXED[0], x), torch.outer(x, FIXED[0])),
    "trace": lambda x: (batch(x)[0].trace(),),
    "diagonal": lambda x: (batch(x).diagonal(dim1=-2, dim2=-1), batch(x)[0].diagonal()),
    "diag": lambda x: (torch.diag(x),),
    "to": lambda x: (x.to(torch.float64),),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rule_gives_what_the_reverse_mode_does(name):
    assert largest_difference(jacobian(CASES[name], X), reverse_jacobian(CASES[name], X)) < ROUNDING


def test_every_rule_has_a_case():
    assert RULES.keys() <= CASES.keys()


def test_what_does_not_vary_has_no_derivative():
    found = jacobian(lambda x: (FIXED, torch.ones_like(x) * 2.0, torch.sign(x), x.detach()), X)
    assert [tuple(a.shape) for a in found] == [(2, 3, 6), (6, 6), (6, 6), (6, 6)]
    assert not any(bool(a.any()) for a in found)


@pytest.mark.parametrize("function", [torch.erf, torch.cumsum, lambda x: torch.linalg.vector_norm(x)])
def test_a_function_without_a_rule_is_refused(function):
    with pytest.raises((NotImplementedError, TypeError)):
        jacobian(lambda x: (function(x),), X)


def test_a_method_without_a_rule_is_refused():
    with pytest.raises(AttributeError, match="no rule"):
        jacobian(lambda x: (x.erf(),), X)
