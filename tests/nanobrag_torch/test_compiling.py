"""Compiled functions: the same numbers as the plain ones, and the plain ones wherever compiled ones do not fit."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from nanobrag_torch import compiling, fused, passes
from nanobrag_torch.compiling import CompilationError, Compiled, compiled
from nanobrag_torch.node_slopes import CAUSES, PLACE, node_pass, slope_pass
from nanobrag_torch.profile import Quadrature
from tests.tolerances import COMPILED_RELATIVE

PASSES = [value for value in vars(passes).values() if isinstance(value, Compiled)]
CASES = [(of, rule) for of in PASSES for rule in of.shapes]
LIKE = torch.zeros((), dtype=torch.float64)


def boxes(seed, count, n_boxes=5, pixels=30):
    """Arguments of the passes: boxes on panels that face any way, absorbing or not, nodes near the middle pixel."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    slow, fast = (
        (uniform(n_boxes, 1) * 40).floor() + torch.arange(pixels) // 6,
        uniform(n_boxes, 1) + torch.arange(pixels) % 6,
    )
    frame = torch.linalg.qr(uniform(n_boxes, 3, 3) - 0.5)[0]
    f, s, n = frame.unbind(2)
    distance = 80 + 40 * uniform(n_boxes, 1)
    origin = distance * n - 3 * uniform(n_boxes, 1) * f - 3 * uniform(n_boxes, 1) * s
    size, mu, thick = 0.05 + 0.1 * uniform(n_boxes, 1), 4 * uniform(n_boxes, 1), 0.5 * uniform(n_boxes, 1)
    parallax = (uniform(n_boxes, 1) > 0.3).double()
    zero = torch.zeros_like(mu)
    # the first box has a sensor of unknown absorption
    mu[0] = 0
    panel = torch.cat([f, s, n, origin, size, distance, mu, parallax, zero, thick], 1)
    s0 = torch.nn.functional.normalize(uniform(3) - 0.5, dim=0)
    e, p = fused.polarization_axes(s0, torch.nn.functional.normalize(uniform(3), dim=0))
    beam = torch.cat([LIKE[None] + 1.1, s0, e, LIKE[None] + 0.8, p, LIKE[None] + 0.2])
    middle = origin + size * (fast[:, 15:16] * f + slow[:, 15:16] * s) + thick / 2 * n
    q = (torch.nn.functional.normalize(middle, dim=1) - s0) / 1.1
    lower = torch.tensor([800.0, 100, 700, -80, 60, 900], dtype=torch.float64) * (0.5 + uniform(n_boxes, count, 6))
    nodes = torch.cat([q[:, None] + 1e-3 * (uniform(n_boxes, count, 3) - 0.5), lower, uniform(n_boxes, count, 1)], -1)
    return (slow, fast, panel, beam, nodes[None]), uniform(n_boxes, count) - 0.2, uniform(n_boxes, pixels)


def arguments(of, rule, seed):
    """What a pass takes, of boxes with one to three nodes."""
    (*scene, nodes), weights, root = boxes(seed, count=1 + seed % 3)
    rays = passes.ray_pass.function(*scene, rule=rule)
    pulls = passes.pull_pass.function(rays, nodes, weights, root, rule=rule)
    taken = {
        passes.ray_pass: scene,
        passes.profile_pass: (rays, nodes),
        passes.moment_pass: (rays, nodes, root),
        passes.pull_pass: (rays, nodes, weights, root),
    }
    return taken.get(of, (*scene, pulls))


@pytest.mark.slow
@pytest.mark.parametrize(("of", "rule"), CASES, ids=lambda of: getattr(of, "name", None))
def test_compiled_sums_are_the_plain_ones_on_boxes_of_any_kind(of, rule, monkeypatch):
    if not of.package(rule).exists():
        pytest.skip(f"{of.name} is not compiled on this machine: make compile")
    monkeypatch.delenv("NANOBRAGG_DISABLE_COMPILE", raising=False)
    for seed in range(20):
        given = arguments(of, rule, seed)
        found, expected = of(*given, rule=rule), of.function(*given, rule=rule)
        size = expected.abs().amax(-1, keepdim=True)
        assert (size > 0).all()
        assert ((found - expected).abs() < COMPILED_RELATIVE * size).all()


def of_nodes(seed, count):
    """Arguments of the passes over nodes, on panels that face either way, absorbing or not."""
    generator = torch.Generator().manual_seed(seed)
    causes, places, hkl = (
        torch.rand(n, count, generator=generator, dtype=torch.float64) + 0.1 for n in (CAUSES, PLACE, 3)
    )
    places[9] *= (-1.0) ** torch.arange(count)
    places[12, ::3] = 0
    places[14] = (places[14] > 0.5).double()
    return causes, places, hkl


@pytest.mark.slow
@pytest.mark.parametrize("of", [node_pass, slope_pass], ids=lambda of: of.name)
def test_compiled_nodes_and_slopes_are_the_plain_ones_on_panels_of_any_kind(of, monkeypatch):
    if of.missing():
        pytest.skip(f"{of.name} is not compiled on this machine: make compile")
    monkeypatch.delenv("NANOBRAGG_DISABLE_COMPILE", raising=False)
    for seed, count in enumerate((1, 2, 7, 8, 9, 300)):
        given = of_nodes(seed, count)
        found, expected = of(*given, rule=1), of.function(*given, rule=1)
        size = expected.abs().amax(-1, keepdim=True)
        # among the six numbers of a slope some are 0
        assert (size > 0).sum() > 0.7 * len(size)
        assert ((found - expected).abs() <= COMPILED_RELATIVE * size).all()


def test_all_that_is_compiled_is_known_to_the_command():
    assert set(compiling.every()) == {*PASSES, node_pass, slope_pass}


USES_EVERY_PASS = """
import os
import signal
from tests.nanobrag_torch.test_compiling import CASES, arguments, node_pass, of_nodes, slope_pass
for of, rule in CASES:
    assert of.package(rule).exists()
    of(*arguments(of, rule, 1), rule=rule)
for of in (node_pass, slope_pass):
    of(*of_nodes(1, 5), rule=1)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_uses_compiled_passes_leaves_nothing_behind(tmp_path):
    if compiling.missing():
        pytest.skip("the passes are not compiled on this machine: make compile")
    environment = {key: value for key, value in os.environ.items() if key != "NANOBRAGG_DISABLE_COMPILE"}
    environment |= {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", USES_EVERY_PASS], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def doubled(monkeypatch, tmp_path):
    """A function whose packages go to a folder of its own; `called` counts plain calls."""
    monkeypatch.setattr(compiling, "folder", lambda: tmp_path)
    monkeypatch.delenv("NANOBRAGG_DISABLE_COMPILE", raising=False)
    called = []

    @compiled({2.0: (("b", "p"),)})
    def twice(x, *, rule):
        called.append(rule)
        return rule * x

    return twice, called


@pytest.mark.slow
def test_a_function_is_compiled_when_asked_and_not_before(doubled):
    if shutil.which("g++") is None:
        pytest.skip("g++ is absent")
    twice, called = doubled
    x = torch.rand(3, 4, dtype=torch.float64)
    assert torch.equal(twice(x, rule=2.0), 2 * x)
    assert called == [2.0]
    twice.build(2.0)
    called.clear()
    for shape in ((3, 4), (1, 1), (50, 7)):
        x = torch.rand(*shape, dtype=torch.float64)
        assert torch.equal(twice(x, rule=2.0), 2 * x)
        assert torch.equal(twice(torch.rand(shape[::-1], dtype=torch.float64).T, rule=2.0).isfinite(), x > -1)
    assert called == []
    plain_only(twice, called)


def plain_only(twice, called):
    """Single precision, other rules, what is differentiated and what torch.func transforms go to the plain function."""
    x = torch.rand(3, 4, dtype=torch.float64)
    assert twice(x.float(), rule=2.0).dtype == torch.float32
    assert torch.equal(twice(x, rule=3.0), 3 * x)
    x.requires_grad_()
    twice(x, rule=2.0).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2.0))
    assert called == [2.0, 3.0, 2.0]
    of_func = torch.func.vmap(lambda row: twice(row[None], rule=2.0))(x.detach())
    assert torch.equal(of_func, 2 * x.detach()[:, None])
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("NANOBRAGG_DISABLE_COMPILE", "1")
        twice(x.detach(), rule=2.0)
    assert len(called) == 5


def test_what_cannot_be_compiled_is_said_in_a_sentence(doubled, monkeypatch):
    def broken(*_):
        raise OSError("no space\nleft")

    monkeypatch.setattr(compiling, "_package", broken)
    twice, _ = doubled
    with pytest.raises(CompilationError, match=r"^no space left$"):
        twice.build(2.0)
    assert not twice.package(2.0).exists()


def test_packages_of_other_sources_are_not_taken(monkeypatch, tmp_path):
    compiling.folder.cache_clear()
    now = compiling.folder()
    compiling.folder.cache_clear()
    monkeypatch.setattr(compiling, "_processor_flags", lambda: "flags: another processor")
    assert compiling.folder() != now
    compiling.folder.cache_clear()


def test_every_pass_is_compiled_for_the_rules_of_a_refinement():
    names = {"ray_pass", "profile_pass", "moment_pass", "pull_pass", "panel_pass", "beam_pass"}
    assert {of.name for of in PASSES} == names
    for of in PASSES:
        assert Quadrature() in of.shapes
        # of a single sample the pulls are sums of moments
        assert (Quadrature(oversample=1) in of.shapes) == (of is not passes.pull_pass)
