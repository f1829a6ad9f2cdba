"""MOSFLM's orientation matrix: nine numbers, wavelength times a*, b*, c* in columns."""

from pathlib import Path

import torch
from torch import Tensor


def read_matrix(path: str | Path) -> Tensor:
    """The first nine numbers of the file as a matrix (3, 3), float64: λA, without unit.

    Raises ValueError where there are fewer, or where they are no numbers.
    """
    words = Path(path).read_text().split()[:9]
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"{path} holds {' '.join(words)!r}: expected the nine numbers of a MOSFLM matrix") from None
    if len(numbers) < 9:
        raise ValueError(f"{path} holds {len(numbers)} numbers: expected the nine of a MOSFLM matrix")
    return torch.tensor(numbers, dtype=torch.float64).reshape(3, 3)
