"""Results of images, a file each, and the sets that are made of them."""

import errno

import pytest
from dials.array_family import flex
from dxtbx.model.experiment_list import ExperimentList

from dbex.io.spool import read_result, told_of, write_result, write_set
from tests.dbex.refined_example import example_refined, example_still, renamed

TOLD = [{"id": 0, "state": "refined"}, {"id": None, "state": "bad input"}, {"id": 1, "state": "poor fit"}]


@pytest.fixture(scope="module")
def lattices():
    refined = example_refined(example_still())
    return [renamed(refined, name, f"id-{name}") for name in ("first", "second")]


def test_each_lattice_of_an_image_comes_back_with_its_own_reflections(tmp_path, lattices):
    write_result(tmp_path / "a/result.zip", lattices, TOLD)
    assert told_of(tmp_path / "a/result.zip") == TOLD
    for lattice, name in ((0, "id-first"), (2, "id-second")):
        result = read_result(tmp_path / "a/result.zip", lattice)
        assert result.experiment.identifier == name
        assert len(result.table) == len(lattices[0].boxes)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["result.zip"]


def test_a_result_that_cannot_be_written_leaves_nothing(tmp_path, lattices, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_result(tmp_path / "result.zip", lattices, TOLD)
    assert list(tmp_path.iterdir()) == []


def test_a_set_has_the_results_in_order_and_each_identifier_once(tmp_path, lattices):
    write_result(tmp_path / "result.zip", lattices, TOLD)
    places = (2, 0, 2)
    write_set((read_result(tmp_path / "result.zip", place) for place in places), tmp_path / "refined_000")
    experiments = ExperimentList.from_file(str(tmp_path / "refined_000.expt"), check_format=False)
    table = flex.reflection_table.from_file(str(tmp_path / "refined_000.refl"))
    assert list(experiments.identifiers()) == ["id-second", "id-first", ""]
    assert dict(table.experiment_identifiers()) == {0: "id-second", 1: "id-first"}
    assert [(table["id"] == index).count(True) for index in range(3)] == [len(lattices[0].boxes)] * 3
