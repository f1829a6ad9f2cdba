"""The faults of tests/seeded_faults.py still find what they change, in files that still compile."""

import ast
import shutil

import pytest

from dbex.conformance.profiles import TITLES
from tests.conftest import ROOT
from tests.seeded_faults import FAULTS


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_changes_one_place_of_the_sources(fault, tmp_path):
    copy = tmp_path / fault.file
    copy.parent.mkdir(parents=True)
    shutil.copy(ROOT / fault.file, copy)
    fault.apply(tmp_path)
    text = copy.read_text(encoding="utf-8")
    assert ast.dump(ast.parse(text)) != ast.dump(ast.parse((ROOT / fault.file).read_text(encoding="utf-8")))
    copy.write_text(text.replace(fault.after, ""), encoding="utf-8")
    with pytest.raises(ValueError, match="adapt the fault"):
        fault.apply(tmp_path)


def test_ten_faults_each_noticed_by_a_test_of_the_profile():
    assert len({fault.name for fault in FAULTS}) == 10
    assert {number for fault in FAULTS for number in fault.noticed_by} <= TITLES.keys()
