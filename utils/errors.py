"""Errors that are meant for the user: one line on stderr and exit code 2, without a traceback."""


class UserError(Exception):
    """Bad input: the message names the file, row, key or flag, and the remedy."""
