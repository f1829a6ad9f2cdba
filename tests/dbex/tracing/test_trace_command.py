"""dbex.trace from files to a table and a JSON file."""

import json
import pickle

import numpy as np
import pytest
from dials.array_family import flex

from dbex.cli.trace import HELP, main
from dbex.errors import BadInput
from tests.tolerances import TRACED_RELATIVE


@pytest.fixture
def files(shipped):
    return [str(shipped.expt), str(shipped.mtz), f"mask={shipped.mask}"]


def strongest(loaded):
    """panel,slow,fast of the brightest pixel in a box."""
    place = np.unravel_index(np.where(loaded.background_image >= 0, loaded.data, 0).argmax(), loaded.data.shape)
    return ",".join(map(str, place))


def traced(arguments, path):
    assert main([*arguments, f"output.json={path}"]) == 0
    return json.loads(path.read_text(encoding="utf-8"))


def value(content, name):
    return next(quantity["value"] for quantity in content["chain"] if quantity["name"] == name)


def test_a_spot_is_told_as_a_table_and_as_json(files, loaded, shipped, tmp_path, capsys):
    content = traced([*files, strongest(loaded), str(shipped.refl)], tmp_path / "trace.json")
    printed = capsys.readouterr().out
    for word in ("ŝ0", "wavelength", "hkl", "solid angle", "absorbed by the sensor", "weighted residual"):
        assert word in printed
    data, background, bragg = (value(content, name) for name in ("data", "background", "Bragg photons"))
    pixel = tuple(content["pixel"])
    assert data == loaded.data[pixel]
    assert bragg > 0
    # the plane under the box of the spot, from the pixels around the pixel
    assert background == pytest.approx(loaded.background_image[pixel], rel=0.2)
    expected = (data - background - bragg) / value(content, "variance") ** 0.5
    assert value(content, "weighted residual") == pytest.approx(expected, rel=TRACED_RELATIVE)
    assert {quantity["unit"] for quantity in content["chain"]} >= {"Å", "1/Å", "1/Å²", "mm", "sr", "photons"}
    assert content["inputs"]["experiments"]["sha256"]
    assert any(quantity["derivative"] for quantity in content["parameters"])
    assert list(tmp_path.iterdir()) == [tmp_path / "trace.json"]


def test_what_is_given_is_taken(files, loaded, tmp_path):
    given = ["scale=2.5", "background=7"]
    content = traced([*files, strongest(loaded), *given], tmp_path / "trace.json")
    assert (value(content, "scale"), value(content, "background")) == (2.5, 7.0)
    assert content["counts"]["scale_from"] == content["counts"]["background_from"] == "given"


def test_a_pixel_that_is_masked_is_told_and_traced(files, shipped, tmp_path, capsys):
    mask = pickle.loads(shipped.mask.read_bytes())[0].as_numpy_array()
    slow, fast = np.argwhere(~mask)[len(mask) // 2]
    content = traced([*files, f"0,{slow},{fast}"], tmp_path / "trace.json")
    assert "not trusted" in capsys.readouterr().out
    assert content["counts"]["trusted"] is False
    assert value(content, "solid angle")[0] > 0


def test_a_pixel_where_the_list_has_no_reflection_is_traced_with_an_amplitude_of_zero(files, shipped, tmp_path):
    """The corner of the detector is beyond the resolution of the amplitudes' file when that is cut."""
    from iotbx import mtz

    array = next(a for a in mtz.object(str(shipped.mtz)).as_miller_arrays() if a.info().labels == ["F", "SIGF"])
    cut = tmp_path / "cut.mtz"
    low = array.resolution_filter(d_min=6.0).set_observation_type_xray_amplitude()
    low.as_mtz_dataset("F").mtz_object().write(str(cut))
    content = traced([files[0], str(cut), files[2], "0,20,20"], tmp_path / "trace.json")
    assert value(content, "amplitude") == [0.0]
    assert value(content, "Bragg photons") == 0.0
    assert value(content, "indices")[0] == value(content, "nearest node")[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["1,5,5"], "on panel 1 but the detector has 1"),
        (["0,2527,5"], r"at slow 2527, fast 5 but panel 0 has shape \(2527, 2463\)"),
        (["0,-1,5"], "at slow -1"),
        (["5,5"], "the pixel is 5,5: expected panel,slow,fast"),
        ([], "no pixel is given"),
        (["pixel=here"], "the pixel is 'here': expected panel,slow,fast"),
        (["0,5,5", "index=3"], "index is 3 but .* has 1 experiments"),
        (["0,5,5", "scale=-1"], "scale is '-1': expected a number of at least 0"),
        (["0,5,5", "output.json=/nowhere/trace.json"], "expected a file in a folder that exists"),
    ],
)
def test_bad_input_is_one_sentence(files, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=said):
        main([*files, *words])
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_asked_for(files):
    with pytest.raises(BadInput, match=r"no \.mtz file is given: expected dbex\.trace still\.expt structure\.mtz"):
        main([files[0], "0,5,5"])


def test_a_mask_of_another_detector_is_refused(files, tmp_path):
    path = tmp_path / "mask.pkl"
    path.write_bytes(pickle.dumps((flex.bool(flex.grid(10, 20), True),)))
    with pytest.raises(BadInput, match="mask has shape"):
        main([*files[:2], f"mask={path}", "0,5,5"])


def test_help_names_the_chain(capsys):
    assert main(["-h"]) == 0
    assert capsys.readouterr().out == HELP
