"""Arrays that come and go cost no page faults."""

import subprocess
import sys
import weakref

import numpy as np
import pytest

from dbex.memory import give_back_memory

FAULTS = """
import resource
import torch
from dbex.memory import keep_memory
assert keep_memory()
for number in range(40):
    # the first ones may still find holes that are too small
    if number == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(8_000_000, dtype=torch.float64)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_twenty_arrays_after_one_another_are_faulted_in_once():
    def faults(told):
        return int(subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout)

    # 64 MB are 15,600 pages of 4 kB, each of the twenty times
    assert faults(FAULTS) < faults(FAULTS.replace("assert keep_memory()\n", "")) / 3


def test_what_a_circle_of_references_holds_is_given_back():
    circle = [np.zeros(10_000_000)]
    circle.append(circle)
    held = weakref.ref(circle[0])
    del circle
    give_back_memory()
    assert held() is None
