"""The arrows of docs/architecture.md, over the syntax tree of every module."""

from pathlib import Path

import pytest

from tests.architecture import (
    GRAPH_CUTS,
    Module,
    environment_reads,
    forbidden_imports,
    graph_cuts,
    imports,
    inside,
    modules,
    work_at_import,
)

MODULES = modules(Path(__file__).resolve().parent.parent, ("nanobrag_torch", "dbex"))

#: A layer, and what it may import besides itself and the standard library. The longest name that fits is the row.
LAYERS = {
    "nanobrag_torch": ("torch", "numpy", "jaxtyping"),
    "dbex.errors": (),
    "dbex.still": ("dbex.errors", "nanobrag_torch", "numpy", "torch", "jaxtyping"),
    "dbex.observations": ("dbex.still", "numpy"),
    "dbex.cell_symmetry": ("dbex.errors", "numpy", "cctbx"),
    "dbex.models": (
        *("dbex.errors", "dbex.still", "dbex.cell_symmetry", "nanobrag_torch", "numpy", "torch"),
        *("dxtbx", "cctbx", "scitbx"),
    ),
    "dbex.io": (
        *("dbex.errors", "dbex.still", "dbex.models", "dbex.observations", "dbex.scoring", "dbex.refinement.settings"),
        "numpy",
        *("nanobrag_torch.config", "dxtbx", "dials", "cctbx", "scitbx", "iotbx", "libtbx", "gemmi", "h5py"),
    ),
    "dbex.scoring": ("dbex.errors", "dbex.still", "nanobrag_torch.config", "numpy"),
    "dbex.scatter": ("dbex.still", "numpy"),
    "dbex.background": ("dbex.rois", "dbex.errors", "dbex.still", "numpy", "scipy"),
    "dbex.rois": ("dbex.errors", "dbex.still", "nanobrag_torch", "numpy", "scipy", "torch"),
    "dbex.spot_widths": ("dbex.rois", "dbex.still", "nanobrag_torch.config", "numpy"),
    "dbex.data_load": (
        *("dbex.io", "dbex.models", "dbex.rois", "dbex.spot_widths", "dbex.background", "dbex.errors", "dbex.still"),
        *("dbex.physics.noise", "nanobrag_torch.config", "numpy"),
    ),
    "dbex.measured_noise": ("dbex.io", "dbex.physics", "dbex.errors", "dbex.still", "numpy"),
    # One pixel's chain for a person to read: the model's own functions, from files to a weighted residual.
    "dbex.tracing": (
        *("dbex.physics", "dbex.measured_noise", "dbex.models", "dbex.io", "dbex.rois", "dbex.background"),
        *("dbex.errors", "dbex.still", "nanobrag_torch", "numpy", "torch"),
    ),
    # The acceptance profile: which tests, and what became of them; pytest runs them in a process of its own.
    "dbex.conformance": ("dbex.errors", "pytest"),
    "dbex.physics": (
        *("dbex.errors", "dbex.still", "dbex.models", "nanobrag_torch", "numpy", "scipy", "torch", "jaxtyping"),
    ),
    # What a refinement is asked to do is a plain record, which the files of its result repeat.
    "dbex.refinement.settings": ("dbex.errors",),
    "dbex.refinement": (
        *("dbex.physics", "dbex.models", "dbex.rois", "dbex.background", "dbex.scoring", "dbex.errors", "dbex.still"),
        *("nanobrag_torch", "numpy", "scipy", "torch", "jaxtyping"),
    ),
    # Many stills for what they share: everything it does to one of them is the refinement of one.
    "dbex.joint": (
        *("dbex.refinement", "dbex.physics.sigma_z", "dbex.observations", "dbex.errors", "dbex.still"),
        *("nanobrag_torch.config", "nanobrag_torch.panel", "numpy", "scipy", "torch"),
    ),
    "dbex.report": (
        *("dbex.refinement", "dbex.scoring", "dbex.scatter", "dbex.errors", "dbex.still"),
        *("numpy", "matplotlib", "jinja2"),
        "nanobrag_torch.config",
    ),
    "dbex.memory": (),
    # Many stills: each in another process, which has threads of its own to set.
    "dbex.batch": (
        *("dbex.refinement", "dbex.data_load", "dbex.io", "dbex.memory", "dbex.errors", "dbex.still"),
        *("nanobrag_torch.config", "torch.set_num_threads", "pebble", "parsl", "mpi4py"),
    ),
    "dbex.cli": (
        *("dbex.report", "dbex.refinement", "dbex.data_load", "dbex.io", "dbex.errors", "dbex.still"),
        *("dbex.batch", "dbex.joint", "dbex.observations", "dbex.measured_noise", "dbex.memory"),
        *("dbex.tracing", "dbex.conformance"),
        # Threads are the command's to set, and no maths.
        *("libtbx", "numpy", "tqdm", "torch.set_num_threads", "nanobrag_torch.compiling"),
    ),
}

#: Where derivatives must survive, and the part of it that only reads files.
PHYSICS = ("nanobrag_torch", "dbex.physics")
FILES = ("nanobrag_torch.io",)

#: (module, function, call) that may leave the autograd graph, and why each is harmless.
HARMLESS_CUTS = {
    ("nanobrag_torch.background", "FormFactor.at", ".detach"): "a place in the table, constant between its entries",
    ("nanobrag_torch.conventions", "automatic_cells", "torch.tensor"): "a sample's size, plain numbers of a command",
    ("nanobrag_torch.mosaic", "uniform_deviates", "torch.tensor"): "rounds a number of the seeded generator to float32",
    ("nanobrag_torch.mosaic", "uniform_deviates", ".item"): "the same number, back",
    ("nanobrag_torch.mosaic", "domain_rotations", ".detach"): "the number in a sentence that refuses it",
    ("nanobrag_torch.mosaic", "drawn_axes", "torch.tensor"): "deviates of a seed, which nothing is refined through",
    ("nanobrag_torch.mosaic", "seeded_rotations", "torch.tensor"): "a spread that is a float, as nanoBragg's is",
    ("nanobrag_torch.node_columns", "node_columns", ".tolist"): "how many nodes each component has",
    ("nanobrag_torch.node_columns", "_followed", ".tolist"): "places of numbers that nothing moves",
    (
        "nanobrag_torch.recompute",
        "_Anew.backward",
        ".detach",
    ): "leaves of a graph that is built anew to be differentiated",
    ("nanobrag_torch.simulate", "automatic_oversample", ".detach"): "a whole number of sub-pixels",
    ("nanobrag_torch.simulate", "_diffracting_strength", ".detach"): "the nearest hkl, constant between jumps",
    ("nanobrag_torch.structure_factors", "tricubic", ".detach"): "the corner of a cell, constant between jumps",
    ("nanobrag_torch.structure_factors", "_refuse_contradictions", ".detach"): "a comparison of the input",
}

#: The one module that reads the environment, for NANOBRAGG_DISABLE_COMPILE.
READS_ENVIRONMENT = "nanobrag_torch.compiling"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_imports_follow_the_arrows(module):
    if module.name == "dbex":
        assert list(imports(module)) == []
    else:
        assert forbidden_imports(module, LAYERS) == []


def test_physics_stays_on_the_autograd_graph():
    cuts = {cut for module in MODULES if inside(module.name, PHYSICS) for cut in graph_cuts(module)}
    cuts = {cut for cut in cuts if not inside(cut[0], FILES)}
    assert cuts - HARMLESS_CUTS.keys() == set()
    assert HARMLESS_CUTS.keys() - cuts == set(), "these calls are gone: take them off the list"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_nothing_runs_at_import(module):
    assert work_at_import(module) == []


def test_one_module_reads_the_environment():
    assert [read for module in MODULES if module.name != READS_ENVIRONMENT for read in environment_reads(module)] == []


def test_every_module_is_looked_at():
    names = {module.name for module in MODULES}
    assert {"nanobrag_torch.config", "nanobrag_torch.io", "dbex.still", "dbex.cli", "dbex.physics"} <= names


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("nanobrag_torch.profile", "import dbex.still"),
        ("nanobrag_torch.profile", "from dxtbx.model import Crystal"),
        ("nanobrag_torch.profile", "def f():\n    import matplotlib.pyplot as plt"),
        ("dbex.physics.forward", "import cctbx.miller"),
        ("dbex.physics.forward", "from dbex.refinement import refine"),
        ("dbex.physics.forward", "from dbex import io"),
        ("dbex.physics.forward", "from .. import io"),
        ("dbex.refinement.objective", "from dbex.cli import refine"),
        ("dbex.refinement.objective", "import h5py"),
        ("dbex.report.figures", "import torch"),
        ("dbex.cli.refine", "from torch import Tensor"),
        ("dbex.cli.refine", "from dials.array_family import flex"),
        ("dbex.still", "from dbex.models import create_crystal_config"),
        ("dbex.elsewhere", "import math"),
    ],
)
def test_an_import_against_the_arrows_is_found(name, source):
    assert len(forbidden_imports(Module.of(name, source), LAYERS)) == 1


@pytest.mark.parametrize("cut", GRAPH_CUTS)
def test_a_cut_of_the_graph_is_found_with_its_function(cut):
    call = f"{cut}(x)" if cut == "torch.tensor" else f"x{cut}()"
    module = Module.of("nanobrag_torch.profile", f"class P:\n    def peak(self, x):\n        return [1, {call} + 1]")
    assert graph_cuts(module) == [("nanobrag_torch.profile", "P.peak", cut)]


@pytest.mark.parametrize("source", ["torch.as_tensor(x)", "torch.Tensor", "x.numpy_array()", "item(x)", "np.tensor(x)"])
def test_what_keeps_the_graph_is_let_pass(source):
    assert graph_cuts(Module.of("nanobrag_torch.profile", source)) == []


@pytest.mark.parametrize(
    "source", ["import os\nos.environ['A']", "import os\ndef f(): return os.getenv('A')", "from os import environ"]
)
def test_a_read_of_the_environment_is_found(source):
    assert len(environment_reads(Module.of("dbex.still", source))) == 1


@pytest.mark.parametrize(
    "source", ["print('hello')", "if True:\n    print(1)", "class A:\n    print(1)", "torch.set_num_threads(1)"]
)
def test_work_at_import_is_found(source):
    assert len(work_at_import(Module.of("dbex.still", source))) == 1


@pytest.mark.parametrize("source", ["def f():\n    print(1)", "if __name__ == '__main__':\n    f()", "N = int('3')"])
def test_work_on_call_is_let_pass(source):
    assert work_at_import(Module.of("dbex.still", source)) == []
