"""The one error class whose message is meant for the user: shown as a single line, exit code 2."""


class UserError(Exception):
    """Something the user gave is wrong; the message names the file, row, key or flag and the remedy."""
