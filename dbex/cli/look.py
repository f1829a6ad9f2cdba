"""dbex.look: shows the residuals of a run in a browser, or writes them as pictures.

What takes time to import is imported where it is used, so that help and complaints come at once.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbex.cli.console import started
from dbex.cli.parameters import fetched, folder_and_others, look_scope
from dbex.cli.questions import answered
from dbex.errors import BadInput

if TYPE_CHECKING:
    from dbex.report.page import Page

COMMAND = "dbex.look"
HELP = """\
usage: dbex.look run [port=0] [output.directory=pictures]

Shows the residuals of a run, every spot of it, on a page that a browser of this machine opens: run is the
output.directory of dbex.refine, dbex.refine_many or dbex.refine_joint. Ctrl-C ends it.

  dbex.look refined                            serves the page and tells its address
  dbex.look refined output.directory=pictures  writes spots.png, z_histogram.png and residual_profile.png of each still,
                                               without a display

options:
  -c, --show-config        show all parameters with their defaults and what they mean
  -a, --attributes-level N with -c: 0 without explanations, 2 with types
  -h, --help               show this
  --version                show the version
"""
#: Who may ask: this machine.
LOOPBACK = "127.0.0.1"
NAME = "dbex.html"


def run() -> int:
    """The console script: exit status 0, 1 for bad input, 130 when interrupted before the page is served."""
    return started(COMMAND, main)


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say; raises BadInput and OSError."""
    if answered(COMMAND, HELP, look_scope, arguments):
        return 0
    look(arguments)
    return 0


def look(arguments: Sequence[str]) -> None:
    """Show the run that the arguments name."""
    folder, others = folder_and_others(arguments)
    parameters, _ = fetched(look_scope(), others)
    from dbex.cli.pages import pages_of

    pages = pages_of(folder, NAME, most_pixels=None)
    if parameters.output.directory is not None:
        write_pictures(folder, [folder / place for place in pages], Path(parameters.output.directory))
        return
    with server_of(pages, parameters.port) as server:
        print(f"http://{LOOPBACK}:{server.server_address[1]}/ shows {folder}; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def write_pictures(folder: Path, places: Sequence[Path], target: Path) -> None:
    """Write the pictures of every still that left its pixels; raises BadInput where none did."""
    from dbex.io.finished import PIXELS, read_still
    from dbex.report.figures import PICTURES, write_picture

    stills = [place.parent for place in places if (place.parent / PIXELS).is_file()]
    if not stills:
        raise BadInput(f"{folder} holds no {PIXELS}: expected a still that dbex.refine left its pixels of")
    for still in stills:
        into = target / still.relative_to(folder)
        into.mkdir(parents=True, exist_ok=True)
        result = read_still(still)
        for name in PICTURES:
            print(write_picture(result, name, into))


def server_of(pages: Mapping[str, "Callable[[], Page]"], port: int) -> ThreadingHTTPServer:
    """A server of the pages to browsers of this machine, each made when it is asked for. Raises BadInput where the port
    is taken."""
    first = next(iter(pages))

    class Pages(BaseHTTPRequestHandler):
        """Gives out the pages and nothing else."""

        def do_GET(self) -> None:
            """The page of the path; 404 for any other, 403 for who asks by another machine's name."""
            host = self.headers.get("Host", "").partition(":")[0]
            place = self.path.partition("?")[0].lstrip("/") or first
            if host not in (LOOPBACK, "localhost"):
                self.send_error(403)
            elif place not in pages:
                self.send_error(404)
            else:
                self.answer(pages[place])

        def answer(self, page: "Callable[[], Page]") -> None:
            """Make and send a page."""
            from dbex.report.page import page_bytes

            content = page_bytes(page())
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Requests are not told."""

    try:
        return ThreadingHTTPServer((LOOPBACK, port), Pages)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise BadInput(f"port={port} cannot be used ({why}): expected a free one, or 0 for any") from error


if __name__ == "__main__":
    sys.exit(run())
