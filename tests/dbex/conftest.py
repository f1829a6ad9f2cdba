"""The shipped still and the other stills of the test data."""

import importlib
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT, SHARED

# What DIALS imports warns while it is compiled, as old escape sequences do: that is not ours to mend.
with warnings.catch_warnings(), suppress(ImportError):
    warnings.simplefilter("ignore")
    for module in (
        *("dials.array_family.flex", "dxtbx.format.Registry", "dxtbx.format.FormatNXmx"),
        *("dxtbx.model.experiment_list", "iotbx.mtz"),
    ):
        importlib.import_module(module)


@dataclass(frozen=True)
class StillFiles:
    """The files of a still."""

    expt: Path
    refl: Path
    mtz: Path
    mask: Path

    def __iter__(self):
        return iter((self.expt, self.refl, self.mtz, self.mask))

    def args(self, **more):
        names = {"exptName": self.expt, "reflName": self.refl, "mtzFile": self.mtz, "maskFile": self.mask}
        return SimpleNamespace(**{"mtzCol": "F,SIGF", "exptIdx": 0, **names, **more})


SHIPPED = StillFiles(*(ROOT / name for name in ("refGeom.expt", "refGeom.refl", "scaled.mtz", "747_mask.pkl")))


def shared_still(folder: str, *names: str) -> StillFiles:
    """Files of the test data beside the repository; skips by name where they are absent."""
    files = StillFiles(*(SHARED / "data" / folder / name for name in names))
    for file in files:
        if not file.exists():
            pytest.skip(f"{file} is absent")
    return files


def reading():
    """dbex.data_load; skips by name where DIALS is absent."""
    pytest.importorskip("dials", reason="DIALS is not installed")
    from dbex import data_load

    return data_load


@pytest.fixture(scope="session")
def shipped():
    return SHIPPED


@pytest.fixture(scope="session")
def still():
    """The shipped still as the command reads it."""
    return reading().read_stills(*SHIPPED).read(0)


@pytest.fixture(scope="session")
def loaded():
    """The shipped still as scripts load it."""
    return reading().DataLoad(SHIPPED.args())


@pytest.fixture(scope="session")
def inputs(loaded):
    """What a loss needs of the shipped still, with a read-out noise of 3 as the gradient harness has it."""
    from dbex.refinement.inputs import prepare_refinement_inputs

    return prepare_refinement_inputs(
        loaded.data,
        loaded.background_image,
        loaded.trusted_mask,
        loaded.bbox,
        loaded.pids,
        loaded.detector,
        sigma_readout=3.0,
    )


@pytest.fixture(scope="session")
def thaumatin_files():
    return shared_still("thaumatin", "indexed.expt", "indexed.refl", "thaumatin.mtz", "mask.pkl")


@pytest.fixture(scope="session")
def thermolysin_files():
    return shared_still("thermolysin", "shot701.expt", "shot701.refl", "thermolysin.mtz", "mask.pkl")


@pytest.fixture(scope="session")
def thermolysin(thermolysin_files):
    """A still on 64 panels in ADU."""
    return reading().read_stills(*thermolysin_files, gain=6.0, sigma_readout=4.5).read(0)


@pytest.fixture(scope="session")
def serial_files():
    return shared_still("serial20", "serial20.expt", "serial20.refl", "../refgeom/scaled.mtz", "mask.pkl")
