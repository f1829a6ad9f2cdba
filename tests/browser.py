"""A page in headless Chromium: what it draws, what it complains of, what it asks the network for."""

import json
import re
import resource
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_S = 120

#: Put into a copy of a page: waits until it is drawn, looks at every figure, uses the picker, and writes what it found.
PROBE = """
<pre id="probe"></pre>
<script>
(function wait() {
  if (!document.documentElement.dataset.state) return setTimeout(wait, 50);
  const numbers = (plot) => (plot.data || []).map((trace) => [trace.x, trace.y, trace.z].filter(Boolean)
    .map((list) => Array.from(list).flat().filter((value) => value !== null).length));
  const found = { state: document.documentElement.dataset.state, charts: {}, canvases: [], picked: [], links: [] };
  document.querySelectorAll("div.plot").forEach((plot) => {
    found.charts[plot.id] = { numbers: numbers(plot), drawn: plot.querySelectorAll(".main-svg").length };
  });
  document.querySelectorAll("#gallery canvas").forEach((canvas) => {
    const bytes = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    found.canvases.push(new Set(new Uint32Array(bytes.buffer)).size);
  });
  const facts = () => ({ words: document.getElementById("facts").textContent,
    z: JSON.stringify(document.getElementById("picked").data[0].z).length,
    peak: Math.max(...document.getElementById("picked").data[0].text.flat().filter((v) => v !== null)) });
  if (document.getElementById("spot")) {
    const list = document.getElementById("spot");
    found.options = list.options.length;
    found.picked.push(facts());
    list.selectedIndex = 2;
    list.dispatchEvent(new Event("change"));
    found.picked.push(facts());
    document.getElementById("next").click();
    found.picked.push(facts());
    const map = document.getElementById("chart-chi2-map");
    map.emit("plotly_click", { points: [{ customdata: Number(list.options[7].value) }] });
    found.picked.push(facts());
    const order = document.getElementById("order");
    order.selectedIndex = 1;
    order.dispatchEvent(new Event("change"));
    found.picked.push(facts());
    document.querySelector(".spot").click();
    found.picked.push(facts());
  }
  document.querySelectorAll("table.sortable").forEach((table) => {
    table.querySelectorAll("th")[0].click();
    table.querySelectorAll("th")[0].click();
    found.sorted = Array.from(table.tBodies[0].rows, (row) => row.cells[0].textContent.trim());
  });
  found.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  document.getElementById("probe").textContent = JSON.stringify(found);
  document.querySelectorAll("script[type='text/plain']").forEach((script) => script.remove());
})();
</script>
"""


@dataclass(frozen=True)
class Seen:
    """What the probe found, and the lines that the page wrote to the console."""

    found: dict[str, Any]
    console: list[str]


def browser() -> str:
    """The browser's program; skips by name where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser is installed: expected one of {', '.join(NAMES)}")
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        pytest.skip("the browser reserves more address space than this process may (ulimit -v)")
    return found


def opened(page: Path, folder: Path) -> Seen:
    """The page, opened from the disk without a network; `folder` is for the copy and the browser's own files."""
    copy = folder / "probed.html"
    text = page.read_text(encoding="utf-8")
    assert text.count("</body>") == 1
    copy.write_text(text.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    done = subprocess.run(
        [
            *(browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"),
            *(f"--user-data-dir={folder / 'browser'}", "--virtual-time-budget=60000", "--window-size=1250,900"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", f"file://{copy}"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    probe = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert probe is not None, done.stderr[-2000:]
    assert probe.group(1), f"the page was never drawn: {done.stderr[-2000:]}"
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Seen(json.loads(unescape(probe.group(1))), console)
