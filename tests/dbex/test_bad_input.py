"""Bad input is refused in one sentence: what was found, what was expected, what to do."""

import json
import pickle
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from dials.array_family import flex
from iotbx import mtz

from dbex.data_load import DataLoad, read_stills
from dbex.errors import BadInput
from dbex.io.structure_factors import read_amplitudes


def flex_mask(array):
    return flex.bool(np.ascontiguousarray(array))


@pytest.fixture(scope="module")
def amplitudes_of_the_shipped_still(shipped):
    return read_amplitudes(shipped.mtz)


@pytest.fixture(autouse=True)
def untouched_amplitudes_are_read_once(monkeypatch, shipped, amplitudes_of_the_shipped_still):
    def read(path, columns=None):
        untouched = columns is None and path.exists() and path.resolve() == shipped.mtz
        return amplitudes_of_the_shipped_still if untouched else read_amplitudes(path, columns)

    monkeypatch.setattr("dbex.data_load.read_amplitudes", read)


@pytest.fixture
def files(shipped, tmp_path):
    """Copies of the shipped still's small files that a test may spoil, and links to the large ones."""
    for file in (shipped.expt, shipped.refl):
        shutil.copy(file, tmp_path / file.name)
    for file in (shipped.mtz, shipped.mask, shipped.expt.with_name("lys_nitr_10_6_0001.cbf")):
        (tmp_path / file.name).symlink_to(file)
    return SimpleNamespace(
        expt=tmp_path / shipped.expt.name,
        refl=tmp_path / shipped.refl.name,
        mtz=tmp_path / shipped.mtz.name,
        mask=tmp_path / shipped.mask.name,
        image=tmp_path / "lys_nitr_10_6_0001.cbf",
    )


def refusal(files, **more):
    """The sentence with which the still is refused."""
    with pytest.raises(BadInput) as refused:
        read_stills(files.expt, files.refl, files.mtz, files.mask, **more).read(0)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    return sentence


def spoil_expt(files, change):
    content = json.loads(files.expt.read_text())
    change(content)
    files.expt.write_text(json.dumps(content))


def spoil_refl(files, change):
    table = flex.reflection_table.from_file(str(files.refl))
    changed = change(table)
    (table if changed is None else changed).as_file(str(files.refl))


def replace_file(path, content):
    path.unlink()
    path.write_bytes(content)


def write_mtz(files, array, name="F", **more):
    files.mtz.unlink()
    array.as_mtz_dataset(column_root_label=name, **more).mtz_object().write(str(files.mtz))


def amplitudes(shipped):
    return next(a for a in mtz.object(str(shipped.mtz)).as_miller_arrays() if a.info().labels == ["F", "SIGF"])


@pytest.mark.parametrize("kind", ["expt", "refl", "mtz", "mask", "image"])
def test_a_missing_file_is_named(files, kind):
    path = getattr(files, kind)
    path.unlink()
    sentence = refusal(files)
    assert str(path) in sentence
    assert "does not exist" in sentence
    assert "check the path" in sentence or "put it there" in sentence


@pytest.mark.parametrize("kind", ["expt", "refl", "mtz", "mask", "image"])
@pytest.mark.parametrize("kept", [0.0, 0.4, 0.97])
def test_a_truncated_file_is_named(files, kind, kept):
    path = getattr(files, kind)
    content = path.read_bytes()
    replace_file(path, content[: int(kept * len(content))])
    sentence = refusal(files)
    assert str(path) in sentence
    assert "is empty: expected" in sentence if kept == 0 else "truncated" in sentence


@pytest.mark.parametrize("kind", ["expt", "refl", "mtz", "mask", "image"])
def test_a_file_of_another_kind_is_named(files, kind):
    replace_file(getattr(files, kind), b"this is a letter to my mother\n" * 40)
    sentence = refusal(files)
    assert str(getattr(files, kind)) in sentence
    assert "expected" in sentence or "cannot be read as" in sentence


def test_an_image_of_another_detector_is_refused(files, serial_files):
    replace_file(files.image, (serial_files.expt.parent / "lyso_shot_0001.cbf").read_bytes())
    assert "has shape (1043, 981) on panel 0 but the detector is (2527, 2463)" in refusal(files)


def test_an_inverted_mask_is_refused(files):
    inverted = tuple(~panel for panel in pickle.loads(files.mask.read_bytes()))
    replace_file(files.mask, pickle.dumps(inverted))
    assert "trusts 0 of 102 indexed spots: expected nearly all; is it inverted?" in refusal(files)


def test_a_transposed_mask_is_refused(files):
    (panel,) = pickle.loads(files.mask.read_bytes())
    replace_file(files.mask, pickle.dumps((flex_mask(panel.as_numpy_array().T),)))
    assert refusal(files) == "mask has shape (2463, 2527) but the detector is (2527, 2463): is it transposed?"


def test_the_mask_of_another_detector_is_refused(files, thermolysin_files):
    files.mask = thermolysin_files.mask
    assert "mask has 64 panels but the detector has 1" in refusal(files)


def test_an_empty_mask_is_refused(files):
    replace_file(files.mask, pickle.dumps(()))
    assert "holds no panel" in refusal(files)


def test_a_mask_that_is_no_flex_bool_is_refused(files):
    replace_file(files.mask, pickle.dumps((flex.int(flex.grid(2527, 2463), 1),)))
    assert "holds int: expected a mask: a pickled tuple of flex.bool" in refusal(files)


def test_an_mtz_without_the_column_is_refused_with_those_it_has(files):
    sentence = refusal(files, mtz_columns="FOBS,SIGFOBS")
    assert "no column FOBS,SIGFOBS: expected one of F,SIGF; F(+),SIGF(+),F(-),SIGF(-); IMEAN,SIGIMEAN" in sentence


def test_intensities_for_amplitudes_are_refused(files):
    assert "has xray.intensity in IMEAN,SIGIMEAN: expected amplitudes" in refusal(files, mtz_columns="IMEAN,SIGIMEAN")


def test_intensities_that_are_called_amplitudes_are_refused(files, shipped):
    array = amplitudes(shipped)
    write_mtz(files, array.customized_copy(data=flex.pow2(array.data())).set_observation_type_xray_amplitude())
    sentence = refusal(files)
    assert "is spread like intensities" in sentence
    assert "<F>²/<F²> = 0.4" in sentence


def test_negative_amplitudes_are_refused(files, shipped):
    array = amplitudes(shipped)
    data = array.data().deep_copy()
    data[7] = -3.0
    write_mtz(files, array.customized_copy(data=data).set_observation_type_xray_amplitude())
    assert "has 1 negative of 47901 amplitudes in F,SIGF: expected F > 0" in refusal(files)


def test_an_mtz_with_nothing_but_nan_is_refused(files, shipped):
    array = amplitudes(shipped)
    data = flex.double(array.size(), float("nan"))
    write_mtz(files, array.customized_copy(data=data, sigmas=data).set_observation_type_xray_amplitude())
    assert "NaN" in refusal(files) or "no amplitudes" in refusal(files)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_an_mtz_with_nan_or_infinity_is_refused(files, shipped, bad):
    array = amplitudes(shipped)
    data = array.data().deep_copy()
    data[7] = bad
    write_mtz(files, array.customized_copy(data=data).set_observation_type_xray_amplitude())
    assert "Inconsistent observation/sigma pair in columns: F, SIGF, hkl=(-24,-13,2)" in refusal(files)


def test_an_mtz_without_amplitudes_is_refused(files, shipped):
    arrays = mtz.object(str(shipped.mtz)).as_miller_arrays()
    write_mtz(files, next(a for a in arrays if a.info().labels[0] == "IMEAN"), "IMEAN")
    assert "has no amplitudes with sigmas but IMEAN,SIGIMEAN" in refusal(files)


def test_the_mtz_of_another_crystal_is_refused(files, thaumatin_files):
    files.mtz = thaumatin_files.mtz
    sentence = refusal(files)
    assert "has the cell (57.89, 57.89, 150.83, 90.00, 90.00, 90.00) but the crystal has (27.38," in sentence
    assert "within 5% and 5°" in sentence


def test_an_mtz_that_is_indexed_otherwise_is_refused(files, shipped):
    write_mtz(files, amplitudes(shipped).change_basis("b,c,a").set_observation_type_xray_amplitude())
    assert "reindex one" in refusal(files)


def test_an_mtz_of_another_point_group_is_refused(thaumatin_files, tmp_path):
    array = next(a for a in mtz.object(str(thaumatin_files.mtz)).as_miller_arrays() if a.info().labels[0] == "F")
    lower = array.expand_to_p1().customized_copy(
        space_group_info=array.crystal_symmetry().cell_equivalent_p1().space_group_info()
    )
    path = tmp_path / "p1.mtz"
    lower.set_observation_type_xray_amplitude().as_mtz_dataset("F").mtz_object().write(str(path))
    with pytest.raises(BadInput, match="has point group P 1 but the crystal has P 4 2 2: expected the same"):
        read_stills(thaumatin_files.expt, thaumatin_files.refl, path, thaumatin_files.mask).read(0)


def test_the_reflections_of_another_experiment_are_refused(files, serial_files):
    files.refl = serial_files.refl
    sentence = refusal(files)
    assert "is of experiment 58c5f4f2" in sentence
    assert "the .expt is of 522233ac" in sentence
    assert "give the .refl that was written with this .expt" in sentence


def test_reflections_of_an_experiment_that_the_list_has_not_are_refused(files):
    def renumber(table):
        table["id"] = flex.int(len(table), 3)
        for key in list(table.experiment_identifiers().keys()):
            del table.experiment_identifiers()[key]

    spoil_refl(files, renumber)
    assert "has reflections of experiment 3 but the .expt has 1" in refusal(files)


def test_reflections_without_boxes_are_refused(files):
    def strip(table):
        del table["bbox"]
        del table["shoebox"]

    spoil_refl(files, strip)
    assert "has neither bbox nor shoebox: expected boxes around the spots" in refusal(files)


def test_reflections_on_a_panel_that_is_not_there_are_refused(files):
    def move(table):
        table["panel"] = flex.size_t(len(table), 5)

    spoil_refl(files, move)
    assert "has spots on panel 5 but the detector has 1" in refusal(files)


@pytest.mark.parametrize("how", ["no flag, no hkl", "no row", "no column"])
def test_no_indexed_spot_is_refused(files, how):
    def unindex(table):
        if how == "no column":
            del table["miller_index"]
        if how == "no row":
            return table.select(flex.bool(len(table), False))
        if how == "no flag, no hkl":
            table["miller_index"] = flex.miller_index(len(table), (0, 0, 0))
        return table

    spoil_refl(files, unindex)
    sentence = refusal(files)
    assert "has no indexed spot" in sentence or "has no column miller_index: expected indexed reflections" in sentence


def test_spots_without_area_are_refused(files):
    def flatten(table):
        table["bbox"] = flex.int6(len(table), (5, 5, 5, 5, 0, 1))

    spoil_refl(files, flatten)
    assert "no box is left of 102 (102 boxes of no area" in refusal(files)


@pytest.mark.parametrize("column", ["xyzobs.px.value", "intensity.sum.value"])
def test_nan_in_the_reflections_is_refused(files, column):
    def poison(table):
        values = table[column]
        values[3] = (float("nan"),) * 3 if column.startswith("xyz") else float("nan")
        table[column] = values

    spoil_refl(files, poison)
    assert f"holds NaN in column {column}" in refusal(files)


def panel(content):
    return content["detector"][0]["panels"][0]


NAN = float("nan")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: panel(c).update(pixel_size=[0.172, 0.1]), "are 0.172 x 0.1 mm: expected square ones"),
        (lambda c: panel(c).update(pixel_size=[0.0, 0.0]), "are 0 x 0 mm: expected square ones"),
        (lambda c: panel(c).update(origin=[-218.1, 213.5, 0.0]), "expected at least 5 mm"),
        (
            lambda c: panel(c).update(origin=[-218.1, 213.5, 0.0], fast_axis=[1, 0, 0], slow_axis=[0, -1, 0]),
            "is 0 mm: expected another number",
        ),
        (lambda c: panel(c).update(origin=[NAN, 213.5, -230.0]), "the geometry of panel Panel holds NaN"),
        (lambda c: panel(c).update(pixel_size=[NAN, NAN]), "the geometry of panel Panel holds NaN"),
        (lambda c: c["beam"][0].update(wavelength=0.0), "the wavelength is 0 Å: expected a positive number"),
        (lambda c: c["beam"][0].update(wavelength=-1.0), "the wavelength is -1 Å: expected a positive number"),
        (lambda c: c["beam"][0].update(wavelength=NAN), "the beam model holds NaN"),
        (lambda c: c["beam"][0].update(polarization_fraction=NAN), "the beam model holds NaN"),
        (lambda c: c["beam"][0].update(direction=[NAN, 0, 1]), "cannot be read as an experiment list"),
        (lambda c: c["crystal"][0].update(real_space_a=[NAN, 1, 2]), "the crystal model holds NaN"),
        (lambda c: c["crystal"][0].update(ML_domain_size_ang=NAN), "the crystal model holds NaN"),
        (lambda c: c["experiment"][0].pop("crystal"), "has no crystal: expected an indexed experiment"),
        (lambda c: c["experiment"][0].pop("beam"), "has no beam"),
        (lambda c: c["experiment"][0].pop("detector"), "has no detector"),
        (lambda c: c["experiment"][0].pop("imageset"), "has no imageset"),
        (lambda c: c["experiment"].clear(), "holds no experiment"),
        (lambda c: c["imageset"][0].update(images=["gone_0001.cbf"]), "gone_0001.cbf, which does not exist: put it"),
    ],
)
def test_models_that_make_no_sense_are_refused(files, change, said):
    spoil_expt(files, change)
    assert said in refusal(files)


@pytest.mark.parametrize("sigma", [0.0, -3.0, NAN])
def test_noise_of_zero_is_refused(files, sigma):
    assert "sigma_readout is" in refusal(files, sigma_readout=sigma)


@pytest.mark.parametrize("bad", [0.0, -3.0, NAN])
def test_a_map_of_noise_with_zeros_is_refused(files, tmp_path, bad):
    sigma = np.full((1, 2527, 2463), 3.0, dtype=np.float32)
    sigma[0, 100:110, 200] = bad
    np.save(tmp_path / "sigma.npy", sigma)
    assert "holds 10 entries of zero, below zero or NaN on trusted pixels" in refusal(
        files, sigma_map=tmp_path / "sigma.npy"
    )


def test_a_map_of_noise_that_is_no_map_is_refused(files, tmp_path):
    (tmp_path / "sigma.npy").write_bytes(b"no array at all, but text")
    assert "sigma.npy cannot be read as a map" in refusal(files, sigma_map=tmp_path / "sigma.npy")
    (tmp_path / "sigma.pkl").write_bytes(pickle.dumps(("letters", "words")))
    assert "sigma.pkl" in refusal(files, sigma_map=tmp_path / "sigma.pkl")


def test_adu_without_gain_or_noise_are_refused(thermolysin_files):
    stills = read_stills(*thermolysin_files, sigma_readout=4.5)
    with pytest.raises(BadInput, match="gain is not known"):
        stills.read(0)
    stills.gain, stills.sigma_readout = 6.0, None
    with pytest.raises(BadInput, match="read-out noise is not known"):
        stills.read(0)


@pytest.mark.parametrize("index", [-1, 1, 7])
def test_an_experiment_beyond_the_list_is_refused(shipped, index):
    with pytest.raises(BadInput, match=f"exptIdx is {index} but .* has 1 experiments: count from 0"):
        DataLoad(shipped.args(exptIdx=index))
