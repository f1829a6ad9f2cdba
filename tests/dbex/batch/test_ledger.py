"""The ledger: a still is in one state of a closed set, and no way of being interrupted loses it."""

import sqlite3
from concurrent.futures import Future
from contextlib import closing

import pytest

from dbex.batch import sweep as sweeping
from dbex.batch.executors import Engine
from dbex.batch.ledger import ATTEMPTS, FILE, SET, Ledger, Outcome, State, Task
from dbex.batch.sweep import Asked, at_work, opened, sweep
from dbex.data_load import Shared
from dbex.errors import BadInput
from dbex.refinement.settings import Settings

ASKED = Asked(Shared("structure.mtz"), Settings())


def task(number, spots=100):
    return Task(f"key {number}", (number,), "a.expt", "a.refl", (number,), spots)


@pytest.fixture
def ledger(tmp_path):
    with closing(Ledger(tmp_path)) as ledger:
        yield ledger


class WorkerGone(Exception):
    pass


def engine(answer):
    """An engine that works at once, in this process: what `answer` gives or raises is the future's."""

    def submit(function, task, *rest):
        future = Future()
        try:
            future.set_result(answer(task))
        except Exception as error:
            future.set_exception(error)
        return future

    return Engine(submit, 2, (WorkerGone,))


def states(ledger):
    return [entry.outcome.state for entry in ledger.entries()]


def test_the_stills_with_most_spots_come_first_set_by_set(ledger):
    ledger.enlist([task(0, 10), task(1, 30), task(2, 20), task(SET, 99)])
    assert [one.numbers[0] for one in ledger.take(3)] == [1, 2, 0]
    assert [one.numbers[0] for one in ledger.take(3)] == [SET]
    assert ledger.take(3) == []


def test_what_is_told_is_kept_when_the_file_is_opened_again(tmp_path):
    told = Outcome(State.POOR_FIT, "shot 1", "poor", "χ² is 9", {"chi2_core": 9.1}, 2.5, 700.0)
    with closing(Ledger(tmp_path)) as ledger:
        ledger.enlist([task(0)])
        ledger.end(*ledger.take(1), [told])
        ledger.remember("asked", {"d_min": 3.0})
    with closing(Ledger(tmp_path)) as ledger:
        assert [(entry.number, entry.outcome) for entry in ledger.entries()] == [(0, told)]
        assert ledger.fact("asked") == {"d_min": 3.0}


def test_a_changed_still_waits_again_and_one_that_is_no_longer_asked_for_goes(ledger):
    ledger.enlist([task(0), task(1), task(2)])
    for one in ledger.take(3):
        ledger.end(one, [Outcome(State.REFINED)])
    ledger.enlist([task(2), Task("changed", (1,), "a.expt", "a.refl", (1,), 100)])
    assert [(entry.key, entry.outcome.state) for entry in ledger.entries()] == [
        ("changed", State.WAITING),
        ("key 2", State.REFINED),
    ]


def test_a_still_that_takes_its_workers_with_it_is_lost_after_three_and_the_others_are_refined(tmp_path, ledger):
    tried = []

    def answer(one):
        tried.append(one.numbers[0])
        if one.numbers == (1,):
            raise WorkerGone("killed by signal 9")
        return [Outcome(State.REFINED)]

    ledger.enlist([task(0), task(1), task(2)])
    sweep(tmp_path, ledger, engine(answer), ASKED, lambda pace: None)
    assert states(ledger) == [State.REFINED, State.LOST, State.REFINED]
    assert tried.count(1) == ATTEMPTS
    reason = [entry.outcome.reason for entry in ledger.entries()][1]
    assert reason == "lost with its worker 3 times: killed by signal 9"


def test_a_full_disk_ends_the_sweep_and_what_was_done_stays_done(tmp_path, ledger):
    def answer(one):
        if one.numbers == (1,):
            raise OSError(28, "No space left on device", "spool")
        return [Outcome(State.REFINED)]

    ledger.enlist([task(0, 9), task(1, 8), task(2, 7)])
    with pytest.raises(OSError, match="No space left"):
        sweep(tmp_path, ledger, engine(answer), ASKED, lambda pace: None)
    assert State.REFINED in states(ledger)
    assert State.LOST not in states(ledger)


def test_a_full_disk_under_the_ledger_itself_is_told_as_any_other(tmp_path, ledger):
    ledger.enlist([task(0)])
    with sqlite3.connect(tmp_path / FILE) as base:
        pages = base.execute("PRAGMA page_count").fetchone()[0]
    ledger._base.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OSError, match="full"):
        ledger.enlist([task(number) for number in range(SET)])
    assert states(ledger) == [State.WAITING]


def test_one_process_at_a_time_hands_out_the_work_of_a_run(tmp_path):
    with opened(tmp_path / "run"):
        assert at_work(tmp_path / "run")
        with pytest.raises(BadInput, match="another process is at work"), opened(tmp_path / "run"):
            pass
    assert not at_work(tmp_path / "run")


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(BadInput, match="holds files but no sweep"), opened(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_another_refinement_of_the_same_run_is_refused_by_name(tmp_path, ledger, monkeypatch):
    monkeypatch.setattr(sweeping, "sha256", lambda path: "hash")
    sweeping.begin(tmp_path, ledger, [], ASKED)
    sweeping.begin(tmp_path, ledger, [], Asked(ASKED.shared, ASKED.settings, threads=2))
    with pytest.raises(BadInput, match=r"d_min was None and is 3\.0\): give those to go on with it"):
        sweeping.begin(tmp_path, ledger, [], Asked(ASKED.shared, Settings(d_min=3.0)))
    monkeypatch.setattr(sweeping, "sha256", lambda path: "another")
    with pytest.raises(BadInput, match="structure_factors was hash and is another"):
        sweeping.begin(tmp_path, ledger, [], ASKED)
