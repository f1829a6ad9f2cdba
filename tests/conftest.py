"""What every test shares: one thread, shapes checked, and where the still and the golden images are."""

import os
import signal

# torch reads these once, at its first import.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

from pathlib import Path

import torch
from jaxtyping import install_import_hook

from tests import shape_checker

# Types and shapes in annotations are checked at every call in the tests, and nowhere else.
install_import_hook(["nanobrag_torch", "dbex"], f"{shape_checker.__name__}.checked")
torch.set_num_threads(1)

# Started in the background of a script this process ignores Ctrl-C, and those that tests interrupt would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
