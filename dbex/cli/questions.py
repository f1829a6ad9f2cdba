"""What a command answers about itself: help, its version, its parameters."""

import re
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any


def answered(command: str, help_text: str, scope: Callable[[], Any], arguments: Sequence[str]) -> bool:
    """Answer a question about the command, printed; False where the arguments ask for work."""
    if "-h" in arguments or "--help" in arguments:
        print(help_text, end="")
    elif "--version" in arguments:
        print(f"{command} {metadata.version('dbex')}")
    elif {"-c", "--show-config"}.intersection(arguments):
        show_config(scope(), arguments)
    else:
        return False
    return True


def show_config(scope: Any, arguments: Sequence[str]) -> None:
    """Print all parameters; `-a N` or `-aN` says with how much explanation."""
    match = re.search(r"(?:^| )(?:-a|--attributes-level)[ =]?(\d+)", " ".join(arguments))
    scope.show(attributes_level=int(match.group(1)) if match else 1)
