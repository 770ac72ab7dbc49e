"""Run scripts in forks of one process, which imports the libraries once."""

if __name__ == "__main__":
    import _root  # noqa: F401

import contextlib
import ctypes
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TextIO

from utils import cli
from utils.runs import signals

GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
MODULES = "utils.imp utils.finetune utils.tasks.glue utils.tasks.mlm utils.tasks.squad"
METRICS = "scipy.stats sklearn.metrics"
DEATH_SIGNAL, NAME = 1, 15  # options of Linux's prctl


class Forked:
    """A running script, a process group of its own; the part of subprocess.Popen needed here."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.pid = int(connection.recv(32) or 0)  # 0: the server could not start it

    def wait(self) -> int:
        """Return the exit code, or -signal."""
        with self._connection:
            return int(self._connection.recv(32) or -signal.SIGKILL)  # of the whole group


class Server:
    """The process that forks scripts; the first script starts it. Threads may share it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment, self._starting = environment, threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket, self._theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)

    def start(self, words: list[str], log: TextIO) -> Forked | None:
        """Start a script with its flags; return None if the server cannot, as with a GPU."""
        if self._environment.get("CUDA_VISIBLE_DEVICES") != "" and any(map(os.path.exists, GPUS)):
            return None  # CUDA does not work in a fork
        ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with theirs, contextlib.suppress(OSError, ValueError):  # no Python, or no library
            with self._starting:
                self._process = self._process or self._launch()
            fds = [theirs.fileno(), log.fileno()]
            socket.send_fds(self._socket, [json.dumps(words).encode()], fds)
        forked = Forked(ours)
        return forked if forked.pid else None

    def _launch(self) -> subprocess.Popen[bytes]:
        with self._theirs:
            return subprocess.Popen(
                ["python", "-u", __file__, str(self._theirs.fileno())],
                pass_fds=[self._theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=self._environment,
                start_new_session=True,  # signals for a group are for the scripts
            )

    def close(self) -> None:
        """End the server, but no script."""
        self._socket.close()
        self._theirs.close()
        if self._process:
            self._process.wait()


def serve(requests: socket.socket) -> list[str]:
    """Fork twice at each request: one process runs the script, the other reports its end.

    Return the script and its flags in the first of them, [] in the server after the last request.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    while True:
        message, fds, *_ = socket.recv_fds(requests, 2**18, 2)
        if not message:
            return []
        if os.fork() == 0:
            break
        for number in fds:
            os.close(number)
    requests.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    connection, log = fds
    parent = os.getpid()
    if child := os.fork():
        os.close(log)
        os.write(connection, b"%d" % os.getpid())
        os.write(connection, b"%d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os._exit(0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for number in fds:
        os.close(number)
    words = list(json.loads(message))
    prctl = ctypes.CDLL(None).prctl
    prctl(DEATH_SIGNAL, signal.SIGKILL)  # the script ends with the process that reports its end
    if os.getppid() != parent:
        os._exit(1)
    prctl(NAME, Path(words[0]).name.encode())  # for top and pkill
    return words


def main(descriptor: int) -> None:
    """Import what the scripts import, and serve the socket `descriptor`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signals.STOP_SIGNALS)  # they are for the scripts
    with cli.imports_without_gc():
        for name in f"{MODULES} {METRICS}".split():
            importlib.import_module(name)
    if words := serve(socket.socket(fileno=descriptor)):
        signals.install(signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.STOP_SIGNALS)
        sys.argv, sys.path[:2] = words, [str(Path(words[0]).resolve().parent)]
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main(int(sys.argv[1]))
