"""Which stills a sweep has, and by what it knows them again."""

import os
import shutil
from pathlib import Path

import pytest
from dxtbx.model.experiment_list import ExperimentList

from dbex.batch.enlist import pairs_of, tasks_of
from dbex.errors import BadInput


@pytest.fixture
def folder(serial_files, tmp_path):
    """Two .expt with a .refl each: three stills of which the last two are on one image, and one still."""
    stills = ExperimentList.from_file(str(serial_files.expt), check_format=False)[:4]
    for still in stills:
        image = tmp_path / Path(still.imageset.paths()[0]).name
        image.touch()
    stills[2].imageset = stills[1].imageset
    for name, chosen in (("a", (0, 1, 2)), ("b", (3,))):
        experiments = ExperimentList()
        for number in chosen:
            experiments.append(stills[number])
        text = tmp_path / f"{name}.expt"
        experiments.as_file(str(text))
        old = str(Path(stills[0].imageset.paths()[0]).parent)
        text.write_text(text.read_text().replace(old, str(tmp_path)))
        shutil.copy(serial_files.refl, tmp_path / f"{name}.refl")
    return tmp_path


def pairs(folder, names="ab"):
    return [(f"{folder}/{name}.expt", f"{folder}/{name}.refl") for name in names]


def test_files_belong_together_by_name_or_else_by_order(tmp_path):
    a, b, x, y = (str(tmp_path / name) for name in ("a.expt", "b.expt", "x.refl", "y.refl"))
    ra, rb = str(tmp_path / "a.refl"), str(tmp_path / "b.refl")
    assert pairs_of([a, b], [rb, ra]) == [(a, ra), (b, rb)]
    assert pairs_of([a, b], [y, x]) == [(a, y), (b, x)]
    with pytest.raises(BadInput, match=r"2 \.expt and 1 \.refl files"):
        pairs_of([a, b], [ra])
    with pytest.raises(BadInput, match=r"a\.expt is given twice"):
        pairs_of([a, a], [ra, rb])


def test_the_stills_of_one_image_are_one_task_and_each_has_its_number(folder):
    tasks = list(tasks_of(pairs(folder)))
    assert [(task.numbers, task.experiment_ids) for task in tasks] == [((0,), (0,)), ((1, 2), (1, 2)), ((3,), (0,))]
    assert tasks[1].spots > tasks[0].spots
    assert len({task.key for task in tasks}) == 3


def test_a_still_is_known_again_until_its_image_or_its_files_change(folder):
    before = [task.key for task in tasks_of(pairs(folder))]
    assert [task.key for task in tasks_of(pairs(folder))] == before
    assert [task.key for task in tasks_of(pairs(folder, "ba"))] == [before[2], *before[:2]]
    os.utime(folder / "lyso_shot_0002.cbf", (1, 1))
    now = [task.key for task in tasks_of(pairs(folder))]
    assert [a == b for a, b in zip(now, before, strict=True)] == [True, False, True]
    with (folder / "b.refl").open("ab") as stream:
        stream.write(b" ")
    now = [task.key for task in tasks_of(pairs(folder))]
    assert [a == b for a, b in zip(now, before, strict=True)] == [True, False, False]


def test_a_file_that_cannot_be_read_is_a_task_of_its_own(folder):
    (folder / "a.expt").write_text("{")
    tasks = list(tasks_of(pairs(folder)))
    assert [(task.numbers, task.experiment_ids) for task in tasks] == [((0,), ()), ((1,), (0,))]
