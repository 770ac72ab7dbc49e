"""Errors that are meant for the user: one line on stderr and exit code 2, without a traceback."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class UserError(Exception):
    """Bad input: the message names the file, row, key or flag, and the remedy."""
