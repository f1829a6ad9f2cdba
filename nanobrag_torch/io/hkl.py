"""Lists of structure factors: text, one `h k l F` a line."""

from pathlib import Path

import torch
from torch import Tensor


def read_hkl(path: str | Path) -> tuple[Tensor, Tensor]:
    """hkl (n, 3), int64, and F (n,), float64, in the order of the file; blank lines and comments (#) are skipped.

    Raises ValueError, with the line's number, where a line is not three whole numbers and an amplitude.
    """
    hkl, F = [], []
    for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        try:
            index = [int(word) for word in words[:3]]
            amplitude = float(words[3])
        except (ValueError, IndexError):
            raise ValueError(f"{path}, line {number} is {line.strip()!r}: expected `h k l F`") from None
        hkl.append(index)
        F.append(amplitude)
    return torch.tensor(hkl, dtype=torch.int64).reshape(-1, 3), torch.tensor(F, dtype=torch.float64)
