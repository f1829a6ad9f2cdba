"""What DBEX raises when the input, not the program, is at fault."""


class BadInput(ValueError):
    """Input that cannot be used: the message is one sentence with what was found, what was expected, what to do."""
