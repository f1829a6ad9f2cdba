"""SMV images: a text header of `KEY=value;` lines in braces, then the pixels."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_TYPES = {"unsigned_short": "u2", "signed_long": "i4", "long_integer": "i4", "signed_short": "i2", "float": "f4"}


def parse_header(text: str) -> dict[str, str]:
    """The keys and values between the braces of a header, in capitals as they stand."""
    body = text.split("{", 1)[-1].split("}", 1)[0]
    pairs = (item.split("=", 1) for item in body.split(";") if "=" in item)
    return {key.strip(): value.strip() for key, value in pairs}


def read_smv(path: str | Path) -> tuple[dict[str, str], Tensor]:
    """The header and the pixels (slow, fast), in their own type, of an SMV image.

    Raises ValueError where the header lacks a size, names an unknown type, or promises more pixels than there are.
    """
    data = Path(path).read_bytes()
    header = parse_header(data[:512].decode("latin-1"))
    length = int(header.get("HEADER_BYTES", "512"))
    header = parse_header(data[:length].decode("latin-1"))
    shape = _shape(path, header)
    kind = header.get("TYPE", "unsigned_short")
    if kind not in _TYPES:
        raise ValueError(f"{path} has TYPE={kind}: expected one of {', '.join(_TYPES)}")
    order = ">" if header.get("BYTE_ORDER", "little_endian").startswith("big") else "<"
    pixel = np.dtype(order + _TYPES[kind])
    count = shape[0] * shape[1]
    found = (len(data) - length) // pixel.itemsize
    if found < count:
        raise ValueError(f"{path} holds {found} pixels: its header promises {shape[0]} x {shape[1]}; is it truncated?")
    image = np.frombuffer(data, pixel, count, length).reshape(shape)
    # torch has no unsigned 16-bit arithmetic: such pixels become 32-bit integers.
    return header, torch.from_numpy(image.astype(np.float32 if kind == "float" else np.int32))


def _shape(path: str | Path, header: Mapping[str, str]) -> tuple[int, int]:
    try:
        return int(header["SIZE2"]), int(header["SIZE1"])
    except (KeyError, ValueError):
        raise ValueError(f"{path} has no SIZE1 and SIZE2 in its header: is it an SMV image?") from None
