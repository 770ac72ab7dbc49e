"""Run the scripts in this process, or in processes forked from one that imported the libraries."""

import contextlib
import importlib
import io
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@dataclass(frozen=True)
class Ended:
    """How a script ended: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    def errors(self) -> list[str]:
        """The lines on stderr but notes; warnings as "warning: TEXT"."""
        lines = [re.sub(f"^{TIME} WARNING ", "warning: ", line) for line in self._lines()]
        return [line for line in lines if not re.match(f"{TIME} INFO ", line)]

    def notes(self) -> list[str]:
        """The notes on stderr, without their time stamps."""
        found = (re.match(f"{TIME} INFO (.*)", line) for line in self._lines())
        return [note[1] for note in found if note]

    def _lines(self) -> list[str]:
        """The lines on stderr without the progress bar, which overwrites itself with \\r."""
        lines = [line.rsplit("\r", 1)[-1] for line in self.err.split("\n")]
        return [line for line in lines if line.strip()]


def run(script: str, *flags) -> Ended:
    """Run a script's main in this process, as the command line would; return how it ended."""
    from utils import cli
    from utils.runs import signals

    main = importlib.import_module(script.removesuffix(".py")).main
    out, err, code = io.StringIO(), io.StringIO(), 0
    handlers = {number: signal.getsignal(number) for number in signals.STOP_SIGNALS}
    with (
        mock.patch.object(sys, "argv", [script, *map(str, flags)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.run(main)
        except SystemExit as end:
            code = end.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return Ended(code, out.getvalue(), err.getvalue())


def done(script: str, *flags) -> str:
    """Run a script that must succeed, with only a progress bar on stderr; return its stdout."""
    ended = run(script, *flags)
    assert ended.code == 0 and ended.errors() == [], ended.err
    return ended.out


def results(folder: Path) -> list[dict]:
    """The rows of a run."""
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def fresh(script: str, *flags, cwd: Path, environment: dict[str, str] | None = None) -> Ended:
    """Run a script in a new interpreter, as a user does; importing the libraries takes seconds."""
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, flags)],
        cwd=cwd,
        capture_output=True,
        env={**os.environ, **ONE_THREAD, **(environment or {})},
    )
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


class Launcher:
    """Starts scripts as processes, forked from a server that imports the libraries once.

    The imports take seconds. `environment` is set before them.
    """

    def __init__(self, environment: dict[str, str]):
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ONE_THREAD, **environment},
        )

    def start(
        self, script: str, *flags, cwd: Path, sleepless: bool = False, processes: int = 1
    ) -> "Launched":
        """Start `script`; only one may run at a time. If `sleepless`, time.sleep returns at once.

        Several processes join as under torchrun, but if one is lost, nothing ends the others.
        """
        folders = [tempfile.mkdtemp(prefix="launch-") for _ in range(processes)]
        request = {
            "script": str(ROOT / script),
            "flags": [str(f) for f in flags],
            "cwd": str(cwd),
            "sleepless": sleepless,
        }
        self._server.stdin.write(
            json.dumps([request | {"folder": folder} for folder in folders]) + "\n"
        )
        self._server.stdin.flush()
        pids = [int(pid) for pid in self._server.stdout.readline().split()]
        return Launched(pids, list(map(Path, folders)), self._server.stdout)

    def __call__(self, script: str, *flags, cwd: Path, sleepless: bool = False) -> Ended:
        """Run `script` until it ends."""
        return self.start(script, *flags, cwd=cwd, sleepless=sleepless).wait()

    def close(self) -> None:
        """Stop the server."""
        self._server.stdin.close()
        self._server.wait()


@dataclass(frozen=True)
class Launched:
    """A running script: its process ids and the folders of their output, by rank."""

    pids: list[int]
    folders: list[Path]
    answers: io.TextIOBase

    def wait(self) -> Ended:
        """Return how its only process ended; the code is -signal if a signal killed it."""
        (ended,) = self.wait_all()
        return ended

    def wait_all(self) -> list[Ended]:
        """Return how its processes ended, by rank."""
        codes = map(int, self.answers.readline().split())
        ended = [
            Ended(code, *((folder / name).read_bytes().decode() for name in ("out", "err")))
            for code, folder in zip(codes, self.folders, strict=True)
        ]
        for folder in self.folders:
            shutil.rmtree(folder)
        return ended


def _serve() -> None:
    sys.path.insert(0, str(ROOT))
    from utils import cli

    with cli.imports_without_gc():
        import torch

        for module in ("released", "imp", "tasks.glue", "tasks.squad", "tasks.mlm"):
            importlib.import_module(f"utils.{module}")
    torch.set_num_threads(1)
    answers = os.dup(1)
    for line in sys.stdin:
        requests = json.loads(line)
        port, pids = _free_port(), []
        for rank, request in enumerate(requests):
            pids.append(os.fork())
            if pids[-1] == 0:
                os.close(answers)
                if len(requests) > 1:
                    os.environ.update(
                        RANK=str(rank),
                        LOCAL_RANK=str(rank),
                        WORLD_SIZE=str(len(requests)),
                        MASTER_ADDR="127.0.0.1",
                        MASTER_PORT=str(port),
                    )
                become(**request)
        os.write(answers, f"{' '.join(map(str, pids))}\n".encode())
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        os.write(answers, f"{' '.join(map(str, codes))}\n".encode())


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def become(script: str, flags: list[str], cwd: str, folder: str, sleepless: bool = False) -> None:
    """Run the script in the forked process and exit with its code."""
    code = 1
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(cwd)
        if sleepless:
            time.sleep = lambda seconds: None
        sys.argv = [script, *flags]
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
