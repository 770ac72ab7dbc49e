"""Signals that ask a program to stop, and the exit code that says that it can resume."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

from utils.files import is_printing_process

RESUME_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: stopped by a signal, the same command resumes
STOP_SIGNALS: tuple[signal.Signals, ...] = (
    *(signal.SIGTERM, signal.SIGINT),
    *(signal.SIGUSR1, signal.SIGUSR2),  # SLURM near a time limit, submitit
)
if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
    STOP_SIGNALS += (signal.SIGHUP,)  # a lost terminal

Handler = Callable[[int, FrameType | None], Any]


class Preempted(SystemExit):
    """A signal asked the program to stop; `message` says from where it resumes."""

    def __init__(self, message: str) -> None:
        super().__init__(RESUME_EXIT_CODE)
        self.message = message


def install(handler: Handler | signal.Handlers) -> dict[signal.Signals, Any]:
    """Handle stop signals by `handler`; return the handlers before."""
    return {number: signal.signal(number, handler) for number in STOP_SIGNALS}


@contextlib.contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """Call `handler` on stop signals, until another one is installed."""
    before = install(handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            if signal.getsignal(number) == handler:
                signal.signal(number, earlier)


def stop_at_once(number: int, _frame: FrameType | None) -> NoReturn:
    """End the program while no Monitor handles signals; a second signal skips the cleaning up."""
    install(lambda *_: os._exit(RESUME_EXIT_CODE))
    raise Preempted(stop_message(number))


def exit_at_once(number: int, _frame: FrameType | None) -> NoReturn:
    """End the process without cleaning up, during imports: a library may swallow an exception."""
    if is_printing_process():
        with contextlib.suppress(OSError):
            os.write(2, f"{stop_message(number)}\n".encode())
    os._exit(RESUME_EXIT_CODE)


def stop_message(number: int) -> str:
    """Return the line that a signal ends a program with that saves no checkpoint for it."""
    return f"{signal.Signals(number).name}: stopped; the same command resumes from what is saved"
