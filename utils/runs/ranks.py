"""End all ranks of a run together, and print the first reason once.

A thread watches for it, because a rank that waits for another one waits in C++: Python's handlers
of signals do not run there.
"""

import contextlib
import json
import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from utils.files import is_printing_process
from utils.runs import signals

POLL_SECONDS = 0.25
SIGNAL_SECONDS = 1.0  # after which the main thread has handled a signal, unless it waits
STEP_SECONDS = 20.0  # the same during training; torchrun and SLURM kill a process after 30
LEAVE_SECONDS = 5.0  # that a rank waits for the others before it ends
BROKEN_PIPE = 128 + signal.SIGPIPE  # exit code if the reader of stdout has ended, as of C programs
REASON, LEFT, ALL_LEFT = "reason", "left", "all left"  # keys of the store


class Ranks:
    """The rank of this process among others, once `connect` has made the others known."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self.store: Any = None
        self._left = False
        self._signals, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()

    def connect(self, store: Any, rank: int, size: int) -> None:
        """Share reasons to end through `store`, a client that nothing else uses."""
        store.set_timeout(timedelta(seconds=LEAVE_SECONDS))
        self.rank, self.size, self.store = rank, size, store

    def leave(self) -> None:
        """Stop watching: this rank has finished."""
        self._left = True
        signal.set_wakeup_fd(-1)

    def _watch(self) -> None:
        number, handler, deadline = 0, None, math.inf
        while not self._left:
            if select.select([self._signals], [], [], POLL_SECONDS)[0]:
                number = self._signals.recv(1)[0]
                handler = signal.getsignal(number)
                early = handler == signals.stop_at_once
                deadline = time.monotonic() + (SIGNAL_SECONDS if early else STEP_SECONDS)
            late, stops = time.monotonic() > deadline, handler == signal.SIG_IGN
            if late and not stops and signal.getsignal(number) == handler:  # a stop replaces it
                _exit(signals.RESUME_EXIT_CODE, signals.stop_message(number))
            if self.store and self._reached(self.store.check, [REASON]):
                _exit(1, "")

    def first_reason(self, code: int, message: str) -> tuple[int, int, str]:
        """Return rank, exit code and message of the first rank that gave a reason to end.

        Without a message, this rank gives none and waits for that of another one.
        """
        own = json.dumps((self.rank, code, message))
        if message:
            self._reached(self.store.compare_set, REASON, "", own)
        return tuple(json.loads(self._reached(self.store.get, REASON) or own))

    def separate(self) -> None:
        """Let rank 0, which may host the store, end last."""
        if self.rank > 0:
            if self._reached(self.store.add, LEFT, 1) == self.size - 1:
                self._reached(self.store.set, ALL_LEFT, "")
        else:
            self._reached(self.store.wait, [ALL_LEFT])

    def _reached(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a call of the store returns, False after a timeout or if it was lost."""
        try:
            return call(*arguments)
        except RuntimeError:
            return False


_ranks: Ranks | None = None
_ending = threading.Lock()  # never released: the first thread ends the process


def several() -> bool:
    """Return whether torchrun started several processes."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def watch() -> Ranks | None:
    """Start to watch, also for signals; return None for a run of one process."""
    global _ranks  # noqa: PLW0603 - one per process
    if _ranks is None and several():
        _ranks = Ranks()
    return _ranks


def leave() -> None:
    """Leave the other ranks after success."""
    if _ranks is not None:
        _ranks.leave()


def end(code: int, message: str) -> int:
    """Print why the program ends, unless another rank was first, and return the exit code."""
    if _ranks is None or _ranks.store is None:
        if _ranks or code == 1 or is_printing_process():  # a rank that met no other says why
            print_reason(code, message)
        return code
    _ending.acquire()
    rank, code, message = _ranks.first_reason(code, message)
    if rank == _ranks.rank:
        is_signal = code == signals.RESUME_EXIT_CODE
        print_reason(code, message if is_signal else message and f"process {rank}: {message}")
    _ranks.separate()
    return code


def _exit(code: int, message: str) -> None:
    """End the process from another thread than the main thread."""
    code = end(code, message)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(code)


def print_reason(code: int, message: str) -> None:
    """Print why the program ends on stderr, in one line."""
    if not message or code == BROKEN_PIPE:
        return
    if code != signals.RESUME_EXIT_CODE:
        message = f"{os.path.basename(sys.argv[0])}: error: {' '.join(message.split())}"
    with contextlib.suppress(OSError):
        if "tqdm" in sys.modules:  # a progress bar may be open
            for bar in list(sys.modules["tqdm"].tqdm._instances):
                bar.close()
        print(message, file=sys.stderr, flush=True)
