"""DB-AT-010, the matrix: the derivative of the closed form in every number of the records, and in |F|, is exact."""

import dataclasses

import pytest
import torch
from torch.func import vmap

from tests.dbex.gradient_cases import (
    KINDS,
    NO_DERIVATIVE,
    NOT_LOOKED_AT,
    ONLY_SAMPLED,
    RECORDS,
    STEPS,
    intensities,
    problem,
)
from tests.dbex.small_still import small_still
from tests.reports import acceptance_report
from tests.tolerances import (
    EXTRAPOLATED_DIFFERENCE_RELATIVE,
    FLOAT32_DERIVATIVE_RELATIVE,
    FLOAT32_PROFILE_RELATIVE,
)

CONFIGURATIONS = 25


def test_every_field_of_the_records_has_a_case():
    for record, kind in RECORDS.items():
        names = {field.name for field in dataclasses.fields(kind)}
        without = {name for owner, name in NO_DERIVATIVE if owner == record}
        assert names == STEPS[record].keys() | ONLY_SAMPLED[record] | without
        assert not without & (STEPS[record].keys() | ONLY_SAMPLED[record])
    assert not set.intersection(*NOT_LOOKED_AT.values())


def test_no_number_hides_among_the_fields_without_derivative():
    for record, name in NO_DERIVATIVE:
        annotation = str(next(field.type for field in dataclasses.fields(RECORDS[record]) if field.name == name))
        assert not any(kind in annotation for kind in ("Tensor", "float", "Vector", "Matrix", "Number"))


@dataclasses.dataclass(frozen=True)
class Stills:
    """Many small stills as one function: `numbers` by (record, field), and hkl and weights, all (stills, …)."""

    numbers: dict
    hkl: torch.Tensor
    weight: torch.Tensor

    def images(self, numbers, kind):
        def one(values, hkl):
            records = {record: {n: v for (r, n), v in values.items() if r == record} for record, _ in values}
            F = records.pop("F")["F"]
            return intensities(records, hkl, F, kind)

        return vmap(one)(numbers, self.hkl.to(next(iter(numbers.values())).dtype))

    def totals(self, numbers, kind):
        """One number a still, to which no pixel is indifferent."""
        images = self.images(numbers, kind)
        return (images * self.weight.to(images.dtype)).sum(1)

    def gradients(self, numbers, kind):
        """Derivatives of the totals in all numbers that a kind of crystal looks at."""
        leaves = {key: value.clone().requires_grad_() for key, value in numbers.items()}
        keys = [key for key in numbers if key[1] not in NOT_LOOKED_AT[kind]]
        found = torch.autograd.grad(self.totals(leaves, kind).sum(), [leaves[key] for key in keys])
        return dict(zip(keys, found, strict=True))


@pytest.fixture(scope="module")
def stills():
    many = [problem(seed) for seed in range(CONFIGURATIONS)]
    numbers = {(r, n): torch.stack([p.values[r][n] for p in many]) for r in STEPS for n in STEPS[r]}
    numbers["F", "F"] = torch.stack([p.F for p in many])
    return Stills(numbers, torch.stack([p.hkl for p in many]), torch.stack([p.weight for p in many]))


def random_step(record, name, value, generator):
    """A step of every component, of random sign and size."""
    size = STEPS[record][name] if record != "F" else None
    scale = 0.01 * value.abs() if size is None else torch.full_like(value, size)
    sign = 2.0 * torch.randint(0, 2, value.shape, generator=generator) - 1
    return sign * (torch.rand(value.shape, generator=generator, dtype=value.dtype) + 0.5) * scale


def largest_errors(f, numbers, gradients, keys):
    """For each key the largest relative error over the stills: of the derivative along a random step, against
    extrapolated differences, relative to what the components of the gradient contribute."""
    generator = torch.Generator().manual_seed(7)
    found = {}
    for key in keys:
        step = random_step(*key, numbers[key], generator)
        central = [
            (f(numbers | {key: numbers[key] + h * step}) - f(numbers | {key: numbers[key] - h * step})) / (2 * h)
            for h in (1.0, 0.5)
        ]
        parts = (gradients[key] * step).reshape(len(step), -1)
        error = (parts.sum(1) - (4 * central[1] - central[0]) / 3).abs()
        assert (gradients[key] != 0).all(), f"nothing depends on {key}"
        found[" ".join(key)] = (error / torch.linalg.vector_norm(parts, dim=1)).max().item()
    return found


def check(report, f, numbers, gradients, keys):
    with acceptance_report(
        "DB-AT-010", report, tolerances={"relative_error": EXTRAPOLATED_DIFFERENCE_RELATIVE}
    ) as values:
        with torch.no_grad():
            values |= largest_errors(f, numbers, gradients, keys)
        assert max(values.values()) < EXTRAPOLATED_DIFFERENCE_RELATIVE


#: What is looked at in which kind of crystal: all fields for a still and for a rotation, else what the kind changes.
ROWS = [
    ("blocks of cells", "rotation", set(RECORDS) | {"F"}),
    ("blocks of cells", "still", set(RECORDS) | {"F"}),
    ("blocks of one size", "still", {"crystal"}),
    ("tensors", "still", {"crystal"}),
]

OVERRIDES = [("detector", "blocks of cells"), ("beam", "blocks of cells"), *(("crystal", kind) for kind in KINDS)]


class TestDB_AT_010_Matrix:
    @pytest.mark.parametrize(("kind", "exposure", "records"), ROWS, ids=[f"{kind}, {how}" for kind, how, _ in ROWS])
    def test_db_at_010_the_derivative_in_every_number(self, stills, kind, exposure, records):
        numbers = {key: v for key, v in stills.numbers.items() if key[0] != "scan" or exposure == "rotation"}
        gradients = stills.gradients(numbers, kind)
        keys = [key for key in gradients if key[0] in records]
        name = f"matrix {kind} {exposure}".replace(" ", "_")
        check(name, lambda at: stills.totals(at, kind), numbers, gradients, keys)

    @pytest.mark.parametrize(("record", "kind"), OVERRIDES, ids=[f"{record}, {kind}" for record, kind in OVERRIDES])
    def test_db_at_010_the_derivative_in_every_override(self, record, kind):
        """The same through simulate_forward_torch, which makes the records from dxtbx's models."""
        still, values = small_still(11), problem(11).values

        def f(numbers):
            crystal, beam = ({n: v for (owner, n), v in numbers.items() if owner == r} for r in ("crystal", "beam"))
            each = [{n: v[i] for (owner, n), v in numbers.items() if owner == "detector"} for i in range(2)]
            return still.number(crystal=crystal | KINDS[kind], detector=each, beam=beam)[None]

        numbers = {(owner, n): value for owner in ("crystal", "beam", record) for n, value in values[owner].items()}
        keys = [key for key in numbers if key[0] == record and key[1] not in NOT_LOOKED_AT[kind]]
        leaves = {key: value.clone().requires_grad_() for key, value in numbers.items()}
        gradients = dict(zip(keys, torch.autograd.grad(f(leaves), [leaves[key] for key in keys]), strict=True))
        batched = {key: value[None] for key, value in numbers.items()}
        check(
            f"overrides_{record}_{kind.replace(' ', '_')}",
            lambda at: f({key: value[0] for key, value in at.items()}),
            batched,
            {key: value[None] for key, value in gradients.items()},
            keys,
        )

    def test_db_at_010_single_precision_keeps_to_its_band(self, stills):
        """Values relative to the peak; derivatives, over a width of the spot or the number's own size, relative to the
        intensity that is summed."""
        numbers = {key: v for key, v in stills.numbers.items() if key[0] != "scan"}
        single = {key: value.float() for key, value in numbers.items()}
        band = {"value": FLOAT32_PROFILE_RELATIVE, "derivative": FLOAT32_DERIVATIVE_RELATIVE}
        with acceptance_report("DB-AT-010", "float32", tolerances=band, dtype="float32") as values:
            exact, rounded = stills.images(numbers, "blocks of cells"), stills.images(single, "blocks of cells")
            assert rounded.dtype == torch.float32
            values["value"] = ((rounded - exact).abs().amax(1) / exact.amax(1)).max().item()
            total = (exact * stills.weight.abs()).sum(1)
            double = stills.gradients(numbers, "blocks of cells")
            for key, found in stills.gradients(single, "blocks of cells").items():
                step = STEPS.get(key[0], {}).get(key[1])
                reach = numbers[key].abs() if step is None else torch.full_like(numbers[key], 50 * step)
                error = ((found - double[key]) * reach).abs().reshape(CONFIGURATIONS, -1).amax(1)
                values[" ".join(key)] = (error / total).max().item()
            assert values["value"] < FLOAT32_PROFILE_RELATIVE
            assert max(value for name, value in values.items() if name != "value") < FLOAT32_DERIVATIVE_RELATIVE
