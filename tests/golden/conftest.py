"""The golden folder, for every test that reads it."""

import numpy as np
import pytest

from tests.golden.cases import FOLDER


@pytest.fixture(scope="session")
def golden_folder():
    if not FOLDER.exists():
        pytest.skip(f"{FOLDER}, the golden images of the original nanoBragg, is absent")
    return FOLDER


@pytest.fixture(scope="session")
def golden_images(golden_folder):
    with np.load(golden_folder / "images.npz") as images:
        return {name: images[name] for name in images.files}
