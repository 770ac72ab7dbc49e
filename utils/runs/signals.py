"""Signals that ask a run to stop, and the exit code that says that it can resume."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from utils.files import is_printing_process

RESUME_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: stopped by a signal, the same command resumes
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

Handler = Callable[[int, FrameType | None], Any]


class Preempted(SystemExit):
    """A signal asked the run to stop."""


@contextlib.contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """Call `handler` on stop signals; outside the main thread, signals stay as they are."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextlib.contextmanager
def stopping_at_once() -> Iterator[None]:
    """End the process at once on a stop signal while no Monitor handles it."""

    def stop(number: int, _frame: FrameType | None) -> None:
        if is_printing_process():
            name = signal.Signals(number).name
            line = f"{name}: stopped; the same command resumes from what is saved\n"
            os.write(2, line.encode())  # the signal may have interrupted a print
        raise Preempted(RESUME_EXIT_CODE)

    with handled_by(stop):
        yield
