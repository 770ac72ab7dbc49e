"""Errors that are meant for the user: one line on stderr and exit code 2, without a traceback."""


class UserError(Exception):
    """Bad input: the message names the file, row, key or flag, and the remedy."""


class LossNotFinite(UserError):
    """The loss became NaN or infinite; the message names the step and the training rows."""
