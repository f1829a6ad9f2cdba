import numpy as np
import pytest
import torch

from nanobrag_torch.config import BeamConfig
from nanobrag_torch.io.hkl import read_hkl
from nanobrag_torch.io.mosflm_matrix import read_matrix
from nanobrag_torch.io.smv import read_smv
from nanobrag_torch.io.sources import read_sources


def written(folder, content):
    path = folder / "file"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_list_of_structure_factors(tmp_path):
    hkl, F = read_hkl(written(tmp_path, "# h k l F\n1 -2 3 10.5\n\n0 0 4 2e1 0.3\n"))
    assert hkl.tolist() == [[1, -2, 3], [0, 0, 4]]
    assert F.tolist() == [10.5, 20.0]


@pytest.mark.parametrize("line", ["1 2 3", "1 2 x 4", "1.5 2 3 4", "1 2 3 F"])
def test_a_line_that_is_no_reflection_is_named(tmp_path, line):
    with pytest.raises(ValueError, match=r"line 2 is '.*': expected `h k l F`"):
        read_hkl(written(tmp_path, f"0 0 1 5\n{line}\n"))


def test_a_mosflm_matrix_is_read_by_rows(tmp_path):
    path = written(tmp_path, "1 2 3\n4 5 6\n7 8 9\n 0. 0. 0.\n")
    assert read_matrix(path).tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


@pytest.mark.parametrize(("text", "message"), [("1 2 3", "holds 3 numbers"), ("a b c", "holds 'a b c'")])
def test_what_is_no_matrix_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_matrix(written(tmp_path, text))


def test_sources_shine_towards_the_crystal(tmp_path):
    path = written(tmp_path, "# x y z weight lambda\n-10 0 0 1 1e-10\n0 0 -2 3 1.2e-10\n")
    beam = read_sources(path, BeamConfig(1.0))
    assert beam.source_directions.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert beam.source_weights.tolist() == [1, 3]
    assert beam.source_wavelengths_A.tolist() == pytest.approx([1.0, 1.2])


@pytest.mark.parametrize(
    ("text", "message"),
    [("1 0 0 1\n", "line 1 is '1 0 0 1'"), ("# none\n", "lists no source"), ("a 0 0 1 1", "line 1")],
)
def test_what_is_no_source_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_sources(written(tmp_path, text), BeamConfig(1.0))


def smv(pixels, kind="unsigned_short", order="little_endian", size=None):
    slow, fast = size or pixels.shape
    header = f"{{\nHEADER_BYTES=512;\nBYTE_ORDER={order};\nTYPE={kind};\nSIZE1={fast};\nSIZE2={slow};\nPHI=2.5;\n}}\n"
    return header.encode().ljust(512) + pixels.tobytes()


@pytest.mark.parametrize(
    ("dtype", "kind", "order"),
    [
        ("<u2", "unsigned_short", "little_endian"),
        (">u2", "unsigned_short", "big_endian"),
        ("<f4", "float", "little_endian"),
    ],
)
def test_an_smv_image_is_slow_by_fast(tmp_path, dtype, kind, order):
    pixels = (np.arange(6).reshape(2, 3) + 60000).astype(dtype)
    header, image = read_smv(written(tmp_path, smv(pixels, kind, order)))
    assert header["PHI"] == "2.5"
    assert image.tolist() == pixels.tolist()
    assert image.dtype == (torch.float32 if kind == "float" else torch.int32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (smv(np.zeros((2, 3), "u2"), size=(4, 5)), "holds 6 pixels: its header promises 4 x 5"),
        (smv(np.zeros((2, 3), "u2"), kind="complex"), "has TYPE=complex"),
        (b"{\nHEADER_BYTES=512;\n}".ljust(600), "has no SIZE1 and SIZE2"),
    ],
)
def test_what_is_no_smv_image_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_smv(written(tmp_path, content))
