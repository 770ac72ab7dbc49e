"""The batch files under a real SLURM: preempted runs go on, failures stay alone, cancelled jobs stay cancelled."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import launch
import pytest
import tiny
from conftest import SHARED, need

from utils import files

START = SHARED / "tools" / "start_slurm.sh"
ELEMENTS = 16
PATIENCE = 600  # seconds: far more than any of this takes

LINGERS = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
import LT_glue
from utils import cli
from utils.watch import Watch
stopped = Path(sys.argv[sys.argv.index("--output_dir") + 1] + ".stopped")
after_step = Watch.after_step

def linger(self, step, *rest):
    if (self._round, step) == (1, 2) and not stopped.exists():
        while self._stop is None:
            time.sleep(0.05)
        stopped.touch()
    after_step(self, step, *rest)

Watch.after_step = linger
sys.argv[0] = "LT_glue.py"
cli.run(LT_glue.main)
"""  # in the middle of the second round, until a signal has come there once


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A one-node SLURM that runs as many jobs at once as are asked of it; it may be up already, or half of it."""
    need(os.geteuid() == 0, "starting SLURM needs root")
    need(START.exists(), f"{START} is not on this machine")
    log = tmp_path_factory.mktemp("slurm") / "start.log"
    with open(log, "w") as file:
        code = subprocess.run(
            ["bash", START], stdout=file, stderr=file, stdin=subprocess.DEVNULL
        ).returncode
    need(code == 0, f"SLURM did not start: {log.read_text()[-500:]}")
    if subprocess.run(
        ["pgrep", "-x", "slurmd"], capture_output=True
    ).returncode:  # the controller alone was up
        subprocess.run(["slurmd"], check=True)
    subprocess.run(
        ["scontrol", "update", "PartitionName=debug", "OverSubscribe=FORCE:32"], check=True
    )
    node = subprocess.run(
        ["sinfo", "-h", "-o", "%n"], capture_output=True, text=True, check=True
    ).stdout.strip()
    subprocess.run(
        ["scontrol", "update", f"NodeName={node}", "State=RESUME"], capture_output=True
    )  # where it is drained


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    tiny.bert(folder / "bert", width=16)
    tiny.glue(folder / "MRPC", "MRPC", train=20, dev=10)
    (folder / "lingers.py").write_text(LINGERS.format(root=str(launch.ROOT)))
    return folder


def line(place, out, script="LT_glue.py", steps=4, **changes):
    """A command of a list, as plan.py prints them."""
    given = {
        "task_name": "MRPC",
        "data_dir": place / "MRPC",
        "model_name_or_path": place / "bert",
        "max_seq_length": 32,
        "per_gpu_train_batch_size": 6,
        "max_steps": 2 * steps,
        "save_steps": steps,
        "sparsities": 0.5,
        "output_dir": out,
        "checkpoint_minutes": 0,
        "learning_rate": 1e-3,
        "logging_steps": 0,
        **changes,
    }
    words = " ".join(f"--{name} {value}" for name, value in given.items() if value is not None)
    return f"python -u {script} --do_train --do_eval --no_cuda --overwrite_output_dir {words}"


class Jobs:
    """What a test has in SLURM's queue."""

    def __init__(self):
        self.numbers, self.waiting = [], {}

    def submit(self, *words):
        """Call a command that submits, from the repository's root, this Python first on the path; the new jobs' numbers."""
        environment = {
            **os.environ,
            **launch.ONE_THREAD,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        done = subprocess.run(
            list(map(str, words)), cwd=launch.ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found = [line.split()[-1] for line in done.stdout.splitlines()]
        self.numbers += found
        return found

    def queue(self):
        """Job (with its element) -> state and reason."""
        told = subprocess.run(
            ["squeue", "--array", "-h", "-o", "%i|%T|%r"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        found = {
            job: (state, reason)
            for job, state, reason in (row.split("|") for row in told.splitlines())
        }
        return {job: ends for job, ends in found.items() if job.split("_")[0] in self.numbers}

    def release(self, *changes):
        """Let requeued jobs start after three seconds, not SLURM's two minutes, so changed; the jobs that wait.

        Not at once: a job that starts in the second in which it ended is refused ("Job credential revoked").
        """
        now = time.monotonic()
        found = [
            job
            for job, (state, reason) in self.queue().items()
            if state == "PENDING" and reason == "BeginTime"
        ]
        self.waiting = {job: self.waiting.get(job, now) for job in found}
        for job in found:
            if now > self.waiting[job] + 3:
                subprocess.run(
                    ["scontrol", "update", f"JobId={job}", "StartTime=now", *changes], check=True
                )
        return found


@pytest.fixture
def jobs(slurm):
    jobs = Jobs()
    yield jobs
    subprocess.run(["scancel", *jobs.numbers], capture_output=True)


def wait_for(condition, told=lambda: ""):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, told()
        time.sleep(0.5)


def in_mid_round(out):
    """Whether the run has a checkpoint within its second round."""
    return any(path.name.split("-")[2] != "0" for path in out.glob("state-1-*-*.pt"))


def outcome(out):
    """Rows, masks and weights, and the names of the files."""
    rows = [json.loads(row) for row in (out / files.RESULTS).read_text().splitlines()]
    rows = [{**row, "args": {**row["args"], "cache_dir": ""}, "wall_seconds": 0} for row in rows]
    names = sorted(
        str(path.relative_to(out)) for path in out.rglob("*") if "events" not in path.parts
    )
    return (
        json.loads(json.dumps(rows).replace(str(out), "OUT")),
        names,
        [(out / name).read_bytes() for name in names if name.endswith((".safetensors", "mask.pt"))],
    )


def test_an_array_that_is_preempted_and_fails_in_part(jobs, place, tmp_path):
    """Sixteen elements at once on one cold cache: one is requeued in mid-round, one fails; another job meets its time limit.

    A second stage, which waits for the first, trains a ticket of the first.
    """
    out, cache, limited = tmp_path / "out", tmp_path / "cache", tmp_path / "limited"
    lines = [
        line(place, out / "0", place / "lingers.py", cache_dir=cache),
        line(place, out / "1", cache_dir=cache, task_name="NOPE"),
        *(
            line(place, out / str(number), cache_dir=cache, seed=number)
            for number in range(2, ELEMENTS)
        ),
        "# stage 2",
        line(
            place,
            out / "last",
            "glue_trans.py",
            cache_dir=cache,
            save_steps=None,
            sparsities=None,
            dir="pre",
            mask_dir=out / "2" / "checkpoint-4" / "mask.pt",
        ),
    ]
    (tmp_path / "list").write_text("\n".join(lines) + "\n")
    (tmp_path / "limited.list").write_text(line(place, limited, place / "lingers.py") + "\n")
    array, restarted = "experiments/slurm/run_array.sbatch", set()
    outputs = lambda: {path.name: path.read_text() for path in tmp_path.glob("*.out")}  # noqa: E731

    def reaches(condition):
        warned = Path(
            f"{limited}.stopped"
        ).exists()  # in mid-round; a second warning would be one more round of the same
        restarted.update(jobs.release(*["TimeLimit=60"] * warned))
        return condition()

    # SLURM, which looks every 30 seconds, warns after 30 to 60
    jobs.submit(
        "bash",
        array,
        tmp_path / "limited.list",
        "--time=2",
        "--signal=B:USR1@60",
        "-o",
        tmp_path / "limited.out",
    )
    wait_for(lambda: reaches(lambda: in_mid_round(limited)), outputs)
    first, _ = jobs.submit("bash", array, tmp_path / "list", "-o", tmp_path / "%x-%a.out")
    wait_for(lambda: reaches(lambda: in_mid_round(out / "0")), outputs)
    subprocess.run(["scontrol", "requeue", f"{first}_0"], check=True)
    wait_for(lambda: reaches(lambda: not jobs.queue()), outputs)
    ended, logs = (
        outputs(),
        {path.name: path.read_text() for path in (tmp_path / "list.logs").iterdir()},
    )
    assert {job for job in restarted if job.startswith(f"{first}_")} == {f"{first}_0"}, ended
    assert "JOB REQUEUE" in ended["tickets-0.out"] and "again" not in ended["tickets-0.out"]
    assert "stopped for the time limit (exit code 75); queueing job" in ended["limited.out"]
    assert "state saved in" in logs["0001.log"]

    # the failing element is alone
    finished = {
        path.parent.name
        for path in out.glob("*/run.json")
        if json.loads(path.read_text())["finished"]
    }
    assert finished == {"0", *map(str, range(2, ELEMENTS)), "last"}
    assert "error: --task_name NOPE" in logs["0002.log"] and "1 failed" in ended["tickets-1.out"]

    # the cold cache was filled once and is whole; nobody complained of it
    assert len(list(cache.iterdir())) == 2 and all(
        path.name.startswith("cached_") for path in cache.iterdir()
    )
    assert [name for name, log in logs.items() if "warning" in log] == []

    # everything is what it is without disturbance
    check = launch.Launcher({})
    for name, text in (("0", lines[0]), ("2", lines[2]), ("last", lines[-1]), ("limited", None)):
        found = out / name if text else limited
        words = (
            (text or (tmp_path / "limited.list").read_text())
            .replace(str(found), str(tmp_path / "alone" / name))
            .split()
        )
        done = check(
            words[2].replace(str(place / "lingers.py"), "LT_glue.py"), *words[3:], cwd=tmp_path
        )
        assert done.code == 0, done.err
        assert outcome(found) == outcome(tmp_path / "alone" / name), name
    check.close()


WAITS = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
pathlib.Path(sys.argv[1]).write_text("")
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("told", "again"),
    [(["scancel"], False), (["scancel", "--batch", "--signal=USR1"], True)],
    ids=["cancelled", "time limit"],
)
def test_a_cancelled_job_stays_cancelled_and_one_at_its_limit_queues_again(
    jobs, tmp_path, told, again
):
    """Both save and end with exit code 75; only a job that SLURM warned of its time limit asks to be run again."""
    (tmp_path / "waits.py").write_text(WAITS)
    script = shutil.copy(launch.ROOT / "experiments" / "slurm" / "run_one.sbatch", tmp_path)
    (job,) = jobs.submit(
        "sbatch",
        "--parsable",
        "-o",
        tmp_path / "out",
        script,
        "python",
        tmp_path / "waits.py",
        tmp_path / "began",
    )
    state = lambda: jobs.queue().get(job, ("gone", ""))[0]  # noqa: E731
    wait_for((tmp_path / "began").exists)
    subprocess.run([*told, job], check=True)
    wait_for(lambda: state() not in ("RUNNING", "COMPLETING"))
    time.sleep(1)
    assert state() == ("PENDING" if again else "gone")
    assert ("queueing job" in (tmp_path / "out").read_text()) == again
