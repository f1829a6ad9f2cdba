"""dbex.status: how far a sweep is, from another process."""

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from dbex.cli.console import started
from dbex.cli.pace import counted, in_words, timed
from dbex.errors import BadInput

COMMAND = "dbex.status"
HELP = """\
usage: dbex.status run

Shows how far the dbex.refine_many is whose output.directory is run: stills by state, stills a second, time left, the
most memory that a worker has held, and whether a process is at work.
"""


def run() -> int:
    """The console script."""
    return started(COMMAND, main)


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say; raises BadInput."""
    if "-h" in arguments or "--help" in arguments:
        print(HELP, end="")
        return 0
    if len(arguments) != 1:
        raise BadInput(
            f"{len(arguments)} arguments are given: expected one, the output.directory of a dbex.refine_many"
        )
    folder = Path(arguments[0])
    from dbex.batch.ledger import FILE, Ledger
    from dbex.batch.sweep import at_work

    if not (folder / FILE).is_file():
        raise BadInput(f"{folder} holds no {FILE}: expected the output.directory of a dbex.refine_many")
    with closing(Ledger(folder)) as ledger:
        pace, owner = ledger.pace(), ledger.fact("owner")
    busy = at_work(folder)
    print(counted(pace))
    print(f"{timed(pace) + '; ' if busy else ''}{in_words(pace.memory_MB)} at most a worker")
    if busy:
        print(f"at work: {owner}")
    elif pace.left:
        print("nobody is at work: give the same dbex.refine_many command again to go on")
    return 0


if __name__ == "__main__":
    sys.exit(run())
