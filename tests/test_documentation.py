"""The documentation builds without a warning, and what it tells the reader to type works as told."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHIPPED = ("refGeom.expt", "refGeom.refl", "scaled.mtz", "747_mask.pkl", "lys_nitr_10_6_0001.cbf")
PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if FENCE.search(page.read_text(encoding="utf-8"))]


def run(command, folder, **more):
    """Run with this interpreter's programs first on the path; the output where it fails."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_page_has_examples():
    assert [page.name for page in PAGES] == ["tutorial.md"]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run_in_the_order_in_which_they_are_read(page, tmp_path):
    pytest.importorskip("dials", reason="DIALS is not installed")
    for name in SHIPPED:
        (tmp_path / name).symlink_to(ROOT / name)
    said = []
    for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "sh":
            # what was said so far belongs to the files that the next command may replace
            said = python(said, tmp_path)
            run(["bash", "-euc", text], tmp_path)
        else:
            assert language == "python", f"{page.name} has a block of {language}: expected sh or python"
            said.append(text)
    python(said, tmp_path)


def python(blocks, folder):
    """Run blocks of one page as one script; no blocks are left."""
    if blocks:
        (folder / "page.py").write_text("\n".join(blocks), encoding="utf-8")
        run([sys.executable, "-W", "error::FutureWarning", "page.py"], folder)
    return []


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)], ROOT)
    assert (tmp_path / "tutorial.html").read_text(encoding="utf-8").count("dbex.refine") > 1


def test_every_section_of_the_physics_that_code_cites_is_there():
    sections = set(re.findall(r"^## (\d+)\.", (ROOT / "docs/physics.md").read_text(encoding="utf-8"), re.MULTILINE))
    cited = {
        (path.name, number)
        for package in ("nanobrag_torch", "dbex")
        for path in (ROOT / package).rglob("*.py")
        for number in re.findall(r"physics\.md,\s+sections?\s+(\d+)", path.read_text(encoding="utf-8"))
    }
    assert len(cited) > 3
    assert {number for _, number in cited} <= sections


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    pages = [ROOT / "README.md", ROOT / "plans/README.md", *(ROOT / "docs").glob("*.md"), ROOT / ".ci/run"]
    named = {
        name
        for page in pages
        for name in re.findall(r"(?:^ {4}|`|&& |exec )make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {"demo", "test", "setup"} <= named
    assert named <= targets
