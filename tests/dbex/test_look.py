"""dbex.look and dbex.report: what a finished run shows without being refined again."""

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from matplotlib import image

from dbex.cli import look as look_command
from dbex.cli import report as report_command
from dbex.cli.pages import pages_of
from dbex.cli.refine import write_still
from dbex.errors import BadInput
from dbex.io.record import Run
from dbex.refinement.settings import Settings
from dbex.report.figures import PICTURES
from dbex.report.page import Gallery, page_bytes
from tests.dbex.refined_example import example_refined

RUN = Run("dbex.refine still.expt", "", Settings(), "2026-01-01T00:00:00+00:00")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What dbex.refine left of a still."""
    found = tmp_path_factory.mktemp("look") / "refined"
    found.mkdir()
    write_still(example_refined(), found, RUN, "dbex.html", str(found), {"refining": 1.0})
    return found


@pytest.fixture(scope="module")
def several(folder, tmp_path_factory):
    """Two stills, of which one has failed."""
    found = tmp_path_factory.mktemp("several")
    (found / "0000_first").symlink_to(folder)
    stills = [
        {"index": 0, "still": "first", "folder": "0000_first", "failure": None},
        {"index": 1, "still": "second", "folder": None, "failure": "the image is absent"},
    ]
    content = {"stills": stills, "versions": {"dbex": "0.1.0"}, "started": "2026-01-01", "command": "dbex.refine"}
    (found / "dbex.json").write_text(json.dumps(content))
    return found


@contextmanager
def served(folder):
    """The address at which a run is shown."""
    with look_command.server_of(pages_of(folder, "dbex.html", None), 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def fetched(address, **headers):
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=30) as answer:
        return answer.read().decode("utf-8")


def refused(address, **headers):
    with pytest.raises(urllib.error.HTTPError) as error:
        fetched(address, **headers)
    error.value.close()
    return error.value.code


def test_a_report_that_is_written_anew_is_the_one_that_the_refinement_wrote(folder, capsys):
    before = (folder / "dbex.html").read_bytes()
    assert report_command.main([str(folder), "output.html=again.html"]) == 0
    assert capsys.readouterr().out == f"{folder / 'again.html'}\n"
    assert (folder / "again.html").read_bytes() == before
    (folder / "again.html").unlink()


def test_a_page_is_served_to_this_machine_and_nothing_else_is(folder):
    with served(folder) as address:
        text = fetched(f"{address}/")
        assert text == fetched(f"{address}/dbex.html?again")
        assert "Model and pixels agree" in text
        assert refused(f"{address}/../refined/dbex.json") == 404
        assert refused(f"{address}/pixels.h5") == 404
        assert refused(f"{address}/", Host="elsewhere.example") == 403


def test_the_served_page_has_every_pixel(folder):
    (page,) = pages_of(folder, "dbex.html", None).values()
    (gallery,) = [item for section in page().sections for item in section.items if isinstance(item, Gallery)]
    assert min(gallery.spots["offset"]) >= 0


def test_several_stills_have_an_overview_that_leads_to_their_pages(several, capsys):
    with served(several) as address:
        assert "the image is absent" in fetched(f"{address}/")
        assert 'href="0000_first/dbex.html"' in fetched(f"{address}/")
        assert "Model and pixels agree" in fetched(f"{address}/0000_first/dbex.html")
    assert report_command.main([str(several)]) == 0
    assert capsys.readouterr().out.split() == [str(several / "dbex.html"), str(several / "0000_first" / "dbex.html")]


def test_pictures_are_written_without_a_display(folder, tmp_path, capsys):
    assert look_command.main([str(folder), f"output.directory={tmp_path / 'png'}"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "png" / name) for name in PICTURES]
    for name in PICTURES:
        picture = image.imread(tmp_path / "png" / name)
        assert picture.shape[2] == 4
        assert picture[..., :3].std() > 0.05, "more than a white sheet"


def test_every_still_of_several_has_its_pictures(several, tmp_path):
    assert look_command.main([str(several), f"output.directory={tmp_path}"]) == 0
    assert sorted(path.name for path in (tmp_path / "0000_first").iterdir()) == sorted(PICTURES)


@pytest.mark.slow
def test_control_c_ends_it(folder):
    words = [sys.executable, "-m", "dbex.cli.look", str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        told = child.stdout.readline()
        assert told.startswith("http://127.0.0.1:")
        assert "Quality of the fit" in fetched(told.split()[0])
        child.send_signal(2)
        _, complaint = child.communicate(timeout=60)
    assert (child.returncode, complaint) == (0, "")


@pytest.mark.parametrize(
    ("command", "arguments", "complaint"),
    [
        (look_command, [], "0 folders are given: expected one"),
        (look_command, ["{folder}", "{folder}"], "2 folders are given"),
        (look_command, ["{folder}/absent"], "is no folder"),
        (look_command, ["{folder}/.."], "dbex.json does not exist"),
        (look_command, ["{folder}", "port=-1"], "port is '-1': expected a whole number of at least 0"),
        (look_command, ["{folder}", "port=99999"], "port=99999 cannot be used"),
        (report_command, ["{folder}", "output.html=None"], "output.html=None: expected a name that ends in .html"),
        (report_command, ["{folder}", "still=two"], "still is 'two': expected a whole number"),
        (report_command, ["{folder}", "still=1"], "still=1 is for the output.directory of a dbex.refine_many"),
        (report_command, ["{folder}", "stil=1"], "unknown parameter stil: did you mean still?"),
    ],
)
def test_what_cannot_be_shown_is_a_sentence(folder, command, arguments, complaint):
    with pytest.raises(BadInput) as error:
        command.main([argument.format(folder=folder) for argument in arguments])
    assert complaint in str(error.value)


def test_a_result_of_an_earlier_version_is_a_sentence(folder, tmp_path):
    import h5py

    for name in ("dbex.json", "pixels.h5"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with h5py.File(tmp_path / "pixels.h5", "a") as stream:
        del stream["boxes/xy_before_px"]
    with pytest.raises(BadInput, match="has no column xy_before_px in /boxes: it was written by an earlier version"):
        report_command.main([str(tmp_path)])
    content = json.loads((tmp_path / "dbex.json").read_text())
    del content["terms"]
    (tmp_path / "dbex.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"dbex.json has no 'terms': it was written by an earlier version"):
        report_command.main([str(tmp_path)])


@pytest.mark.parametrize("command", [look_command, report_command])
@pytest.mark.parametrize("words", [["-h"], ["-c"], ["--version"]])
def test_help_comes_at_once(command, words, capsys):
    assert command.main(words) == 0
    assert capsys.readouterr().out


def test_pages_say_the_same_whoever_makes_them(folder):
    (page,) = pages_of(folder, "dbex.html").values()
    assert page_bytes(page()) == (folder / "dbex.html").read_bytes()
