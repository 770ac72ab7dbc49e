"""How a program ends: early signals, lost streams, nohup, and errors of the machine."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import launch
import pytest
from interrupted_runs import glue, imp

from utils import cli
from utils.errors import UserError
from utils.runs import signals
from utils.tasks.glue import GlueTask

ENVIRONMENT = {**os.environ, **launch.ONE_THREAD}
LIST = [sys.executable, str(launch.ROOT / "experiments" / "plan.py"), "table2"]


def training(inputs, out):
    script = str(launch.ROOT / "glue_trans.py")
    flags = ["--dir", "pre", *glue(inputs), "--max_steps", "2", "--output_dir", str(out)]
    return [sys.executable, script, *flags]


def shell(words, redirections, cwd):
    """Run a command in bash with redirections; all that is printed is in the answer."""
    script = f'"$@" {redirections}'
    command = ["bash", "-o", "pipefail", "-c", script, "bash", *words]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)


def handles(pid, number):
    """Whether a process handles a signal (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (number - 1) & 1)


# ---- signals while the libraries are imported


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP"])
@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_a_signal_during_the_imports_ends_in_one_line(inputs, tmp_path, name, seconds):
    with subprocess.Popen(
        training(inputs, tmp_path / "out"), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    ) as running:
        while not handles(running.pid, signal.SIGTERM):
            time.sleep(0.001)
        time.sleep(seconds)
        running.send_signal(getattr(signal, name))
        errors = running.stderr.read()
    assert running.returncode == 75
    assert errors == f"{name}: stopped; the same command resumes from what is saved\n"
    assert not (tmp_path / "out").exists()


def test_nohup_keeps_a_run_when_its_terminal_is_lost(tmp_path):
    program = (
        "import os, signal\n"
        "from utils import cli\n"
        "cli.run(lambda: os.kill(os.getpid(), signal.SIGHUP))"
    )
    for prefix, code in ([], 75), (["nohup"], 0):
        words = [*prefix, sys.executable, "-c", program]
        ended = subprocess.run(words, cwd=launch.ROOT, env=ENVIRONMENT, capture_output=True)
        assert ended.returncode == code, ended


def test_a_second_signal_waits_for_the_checkpoint(inputs, tmp_path, at_step):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with at_step(6, twice):
        ended = imp(inputs, tmp_path / "out")
    assert ended.code == 75 and "checkpoint saved in" in ended.errors()[0]


def test_a_signal_after_the_end_changes_nothing():
    program = (
        "import atexit, os, signal\n"
        "from utils import cli\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
        "cli.run(lambda: 3)"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=launch.ROOT, capture_output=True)
    assert (ended.returncode, ended.stderr) == (3, b"")


# ---- streams that are lost


@pytest.mark.parametrize(
    ("redirections", "code", "error"),
    [
        ("| true", 141, ""),
        ("2>&1 | true", 141, ""),
        (">/dev/full", 1, "No space left on device"),
        (">&-", 0, ""),
        (">&- 2>&- <&-", 0, ""),
    ],
)
def test_lost_streams_end_in_silence_or_in_one_line(inputs, tmp_path, redirections, code, error):
    for words in (LIST, training(inputs, tmp_path / "out")):
        ended = shell(words, redirections, tmp_path)
        assert ended.returncode == code, ended
        assert "Traceback" not in ended.stderr and "Exception" not in ended.stderr
        lines = launch.Ended(code, "", ended.stderr).errors()
        assert len([line for line in lines if "error:" in line]) == bool(error)
        assert error in ended.stderr


# ---- errors of the machine


def raising(error):
    def load(*_):
        raise error

    return load


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (OSError("the hub is closed\nfor today"), 1, "the hub is closed"),
        (OSError(errno.EREMOTEIO, "Remote I/O error"), 1, "Remote I/O error"),
        (OSError(errno.ESTALE, "Stale file handle", "data/train.tsv"), 1, "data/train.tsv: Stale"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), 2, "give another path"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), 1, "reset by peer"),
        (MemoryError(), 1, "out of memory"),
        (MemoryError("Unable to allocate 9 TiB"), 1, "Unable to allocate 9 TiB"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            1,
            "allocate memory",
        ),
        (RuntimeError("can't start new thread"), 1, "start new thread"),
        (UserError("line 3:\nno label"), 2, "line 3: no label"),
    ],
    ids=repr,
)
def test_errors_of_the_machine_end_in_one_line(inputs, tmp_path, monkeypatch, error, code, part):
    monkeypatch.setattr(GlueTask, "load", raising(error))
    ended = imp(inputs, tmp_path / "out")
    (line,) = ended.err.splitlines()
    assert ended.code == code and line.startswith("LT_glue.py: error: ") and part in line


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 // 0)


def test_a_handler_is_removed_unless_another_one_was_installed():
    before = signal.getsignal(signal.SIGTERM)
    with signals.handled_by(signals.stop_at_once):
        assert signal.getsignal(signal.SIGTERM) == signals.stop_at_once
    assert signal.getsignal(signal.SIGTERM) == before
