"""nanoBragg's source files: text, one `X Y Z weight wavelength` a line."""

import dataclasses
from pathlib import Path

import torch

from nanobrag_torch.config import BeamConfig
from nanobrag_torch.tensors import unit

ANGSTROM_PER_M = 1e10


def read_sources(path: str | Path, beam: BeamConfig) -> BeamConfig:
    """`beam` with the samples of a file: positions of the sources seen from the crystal, weights, wavelengths in m.

    The beam goes from a source to the crystal: the direction of travel is minus the position, which may have any
    length. Blank lines and comments (#) are skipped. Raises ValueError, with the line's number, for any other line.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        try:
            row = [float(word) for word in words]
        except ValueError:
            row = []
        if len(row) != 5:
            raise ValueError(f"{path}, line {number} is {line.strip()!r}: expected `X Y Z weight wavelength(m)`")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} lists no source: expected lines of `X Y Z weight wavelength(m)`")
    table = torch.tensor(rows, dtype=torch.float64)
    return dataclasses.replace(
        beam,
        source_directions=unit(-table[:, :3]),
        source_weights=table[:, 3],
        source_wavelengths_A=table[:, 4] * ANGSTROM_PER_M,
    )
