"""A page of one file: words, tables, figures and spots, with all that draws them; it asks no network for anything."""

import base64
import functools
import importlib.util
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dbex.errors import BadInput

FILES = Path(__file__).parent / "page_files"
#: Where PyPI's and Debian's plotly keep the library: beside the package, and here. To ask the package for it takes half
#: a second.
BESIDE_PACKAGE, OF_DEBIAN = Path("package_data/plotly.min.js"), Path("/usr/share/python3-plotly/plotly.js")
#: How hard to compress the library: a tenth of a second, and 2.9 MB of the page in Debian's version.
LIBRARY_LEVEL, PAYLOAD_LEVEL = 3, 6
#: Numbers of figures are written with so many digits.
DIGITS = 8


@dataclass(frozen=True)
class Text:
    """Paragraphs."""

    kind: ClassVar[str] = "text"
    paragraphs: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table of words and numbers with its caption; `sortable` by a click on a heading. A cell is text, or text with
    an address that it links to. `numeric` are the columns that are written flush right."""

    kind: ClassVar[str] = "table"
    headings: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    caption: str
    numeric: tuple[int, ...] = ()
    sortable: bool = False


@dataclass(frozen=True)
class Link:
    """A cell that leads elsewhere."""

    text: str
    address: str


@dataclass(frozen=True)
class Chart:
    """A figure of plotly (traces and layout), with a title that says what it shows and a caption that says how to read
    it; `picks` where a click on a mark, whose customdata is a box, shows that spot."""

    kind: ClassVar[str] = "chart"
    name: str
    title: str
    caption: str
    traces: tuple[dict[str, Any], ...]
    layout: dict[str, Any]
    height: int = 360
    picks: bool = False


@dataclass(frozen=True)
class Gallery:
    """Spots in rows by kind, each box as data, model and Z, and any other spot by a picker; `spots` is what draws them:
    dbex.report.spots."""

    kind: ClassVar[str] = "gallery"
    caption: str
    spots: dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading."""

    title: str
    items: tuple[Text | Table | Chart | Gallery, ...]

    @property
    def anchor(self) -> str:
        """What a link to it is called."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


@dataclass(frozen=True)
class Page:
    """A page: its title, a word for its state (good, poor, …) with the sentence that explains it, and its parts."""

    title: str
    state: str
    lead: tuple[str, ...]
    sections: tuple[Section, ...]
    foot: str = ""
    badge: str = field(default="")


def write_page(page: Page, file: Path) -> None:
    """Write a page; raises OSError, and BadInput where plotly is absent."""
    file.write_bytes(page_bytes(page))


def page_bytes(page: Page) -> bytes:
    """The page as HTML in UTF-8; raises BadInput where plotly is absent."""
    items = [item for section in page.sections for item in section.items]
    payload = {
        "charts": {
            item.name: {"traces": item.traces, "layout": item.layout, "picks": item.picks}
            for item in items
            if isinstance(item, Chart)
        },
        "spots": next((item.spots for item in items if isinstance(item, Gallery)), None),
    }
    text = json.dumps(plain(payload), allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    template = environment().get_template("page.html")
    return template.render(
        page=page,
        style=(FILES / "page.css").read_text(encoding="utf-8"),
        script=(FILES / "page.js").read_text(encoding="utf-8"),
        library=library(),
        payload=packed(text.encode("utf-8"), PAYLOAD_LEVEL),
        draws=any(isinstance(item, Chart | Gallery) for item in items),
    ).encode("utf-8")


@functools.cache
def environment() -> Environment:
    """What fills the templates; whatever comes from files is escaped."""
    return Environment(
        loader=FileSystemLoader(FILES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


@functools.cache
def library() -> str:
    """plotly.js, compressed; raises BadInput where plotly is not installed."""
    return packed(library_file().read_bytes(), LIBRARY_LEVEL)


def library_file() -> Path:
    """Where plotly.js is; raises BadInput where plotly is not installed."""
    spec = importlib.util.find_spec("plotly")
    if spec is None or spec.origin is None:
        raise BadInput("plotly is not installed: expected it for output.html; install it or give output.html=None")
    beside = Path(spec.origin).parent / BESIDE_PACKAGE
    for file in (beside, OF_DEBIAN):
        if file.is_file():
            return file
    raise BadInput(f"plotly has no {beside}: expected plotly.js there; install plotly anew or give output.html=None")


def packed(content: bytes, level: int) -> str:
    """Bytes as the page unpacks them: compressed, in base64."""
    return base64.b64encode(zlib.compress(content, level)).decode("ascii")


def packed_array(values: np.ndarray) -> str:
    """An array of numbers as the page unpacks it, low bytes first."""
    little = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"))
    return packed(little.tobytes(), PAYLOAD_LEVEL)


def plain(value: Any) -> Any:
    """What JSON can hold: arrays become lists of numbers with DIGITS digits, numbers that are none null."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value
