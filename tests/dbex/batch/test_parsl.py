"""Parsl's workers in the place of this machine's: the configurations that come with DBEX, and a lost worker."""

import sys
from pathlib import Path

import pytest

from dbex.batch import parsl_configs
from dbex.batch.executors import configuration_of, parsl_workers, workers_of
from dbex.errors import BadInput

SHIPPED = sorted(path for path in Path(parsl_configs.__file__).parent.glob("[a-z]*.py"))


@pytest.fixture
def parsl():
    return pytest.importorskip("parsl", reason="Parsl is not installed")


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_configuration_is_one_of_this_parsl(file, parsl):
    if file.stem == "kubernetes":
        pytest.importorskip("kubernetes", reason="the package kubernetes is not installed")
    config = configuration_of(file, parsl)
    assert workers_of(config) > 1


def test_there_is_one_for_each_batch_system():
    assert [file.stem for file in SHIPPED] == ["kubernetes", "local", "lsf", "pbs", "slurm"]


def test_a_file_that_is_no_configuration_is_told(tmp_path, parsl, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda program: program)
    file = tmp_path / "cluster.py"
    for text, words in ((None, "does not exist"), ("config = 3", "defines no config"), ("1 / 0", "division by zero")):
        if text:
            file.write_text(text)
        with pytest.raises(BadInput, match=words), parsl_workers(file, tmp_path / "parsl"):
            pass


def test_without_its_programs_the_engine_says_what_to_activate(tmp_path, monkeypatch, parsl):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="activate its environment"), parsl_workers("cluster.py", tmp_path):
        pass


def test_without_parsl_the_engine_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "parsl", None)
    with pytest.raises(BadInput, match=r"pip install 'dbex\[parsl\]'"), parsl_workers("cluster.py", tmp_path):
        pass
