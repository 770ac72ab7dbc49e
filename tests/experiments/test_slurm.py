"""The batch files in a real SLURM: preemption, failures, time limits, cancelled jobs."""

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

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
START = SHARED / "tools" / "start_slurm.sh"
ELEMENTS = 16
PATIENCE = 600  # seconds: far more than any of this takes

LINGERS = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
import LT_glue
from utils import cli
from utils.runs.monitor import Monitor
stopped = Path(sys.argv[sys.argv.index("--output_dir") + 1] + ".stopped")
after_step = Monitor.after_step

def linger(self, step, *rest):
    if (self._round, step) == (1, 2) and not stopped.exists():
        while self._signal is None:
            time.sleep(0.05)
        stopped.touch()
    after_step(self, step, *rest)

Monitor.after_step = linger
sys.argv[0] = "LT_glue.py"
cli.run(LT_glue.main)
"""  # waits in the middle of the second round for its first signal


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A one-node SLURM that runs as many jobs at once as a test needs; it may be up already."""
    need(os.geteuid() == 0, "starting SLURM needs root")
    need(START.exists(), f"{START} is not on this machine")
    log = tmp_path_factory.mktemp("slurm") / "start.log"
    with open(log, "w") as file:
        start = subprocess.run(["bash", START], stdout=file, stderr=file, stdin=subprocess.DEVNULL)
    need(start.returncode == 0, f"SLURM did not start: {log.read_text()[-500:]}")
    if subprocess.run(["pgrep", "-x", "slurmd"], capture_output=True).returncode:
        subprocess.run(["slurmd"], check=True)  # only the controller was up
    partition = ["PartitionName=debug", "OverSubscribe=FORCE:32"]
    subprocess.run(["scontrol", "update", *partition], check=True)
    words = ["sinfo", "-h", "-o", "%n"]
    node = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    resume = [f"NodeName={node}", "State=RESUME"]  # fails unless the node is drained
    subprocess.run(["scontrol", "update", *resume], capture_output=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a tiny BERT, data for it, and a script that waits for a signal."""
    folder = tmp_path_factory.mktemp("data")
    tiny.bert(folder / "bert", width=16)
    tiny.glue(folder / "MRPC", "MRPC", train=20, dev=10)
    tiny.squad(folder / "squad", train=3, dev=2)
    (folder / "lingers.py").write_text(LINGERS.format(root=str(launch.ROOT)))
    return folder


def line(data, out, script="LT_glue.py", steps=4, **changes):
    """A command of a list, as plan.py prints them."""
    given = {
        "task_name": "MRPC",
        "data_dir": data / "MRPC",
        "model_name_or_path": data / "bert",
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
    shared = "--do_train --do_eval --do_lower_case --no_cuda --overwrite_output_dir"
    return f"python -u {script} {shared} {words}"


def squad_line(data, out, **changes):
    """The same for SQuAD, which has a cache of windows."""
    flags = {"task_name": None, "data_dir": None, "max_seq_length": 48, "doc_stride": 16}
    flags |= {"max_query_length": 12, "train_file": data / "squad" / "train-v1.1.json"}
    flags |= {"predict_file": data / "squad" / "dev-v1.1.json", **changes}
    return line(data, out, "squad_trans.py", **flags)


class Jobs:
    """The jobs of a test in SLURM's queue."""

    def __init__(self):
        self.numbers, self.waiting = [], {}

    def submit(self, *words):
        """Run a command that submits jobs, from the repository's root; return their numbers."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, **launch.ONE_THREAD, "PATH": path}
        done = subprocess.run(
            list(map(str, words)), cwd=launch.ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found = [line.split()[-1] for line in done.stdout.splitlines()]
        self.numbers += found
        return found

    def queue(self):
        """Job (with its array index) -> state and reason."""
        words = ["squeue", "--array", "-h", "-o", "%i|%T|%r"]
        rows = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        found = [row.split("|") for row in rows.splitlines()]
        return {
            job: (state, reason)
            for job, state, reason in found
            if job.split("_")[0] in self.numbers
        }

    def release(self, *changes):
        """Let requeued jobs start after three seconds, not SLURM's two minutes; return them.

        Not at once: SLURM refuses a job that starts in the second in which it ended ("Job
        credential revoked").
        """
        now = time.monotonic()
        queue = self.queue().items()
        found = [job for job, state in queue if state == ("PENDING", "BeginTime")]
        self.waiting = {job: self.waiting.get(job, now) for job in found}
        for job in found:
            if now > self.waiting[job] + 3:
                words = ["scontrol", "update", f"JobId={job}", "StartTime=now", *changes]
                subprocess.run(words, check=True)
        return found


@pytest.fixture
def jobs(slurm):
    jobs = Jobs()
    yield jobs
    subprocess.run(["scancel", *jobs.numbers], capture_output=True)


def wait_for(condition, message=lambda: ""):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, message()
        time.sleep(0.5)


def in_mid_round(out):
    """Whether the run has a checkpoint within its second round."""
    return any(path.name.split("-")[2] != "0" for path in out.glob("state-1-*-*.pt"))


def outcome(out):
    """Rows, masks and weights, and the names of the files."""
    rows = [json.loads(row) for row in (out / files.RESULTS).read_text().splitlines()]
    rows = [{**row, "args": {**row["args"], "cache_dir": ""}, "wall_seconds": 0} for row in rows]
    paths = [path.relative_to(out) for path in out.rglob("*") if "events" not in path.parts]
    names = sorted(map(str, paths))
    tensors = [name for name in names if name.endswith((".safetensors", "mask.pt"))]
    contents = [(out / name).read_bytes() for name in tensors]
    return json.loads(json.dumps(rows).replace(str(out), "OUT")), names, contents


def check_undisturbed(commands, lingers, folder):
    """Assert that each output folder holds what its command leaves if nothing stops it."""
    launcher = launch.Launcher({})
    for found, command in commands.items():
        alone = folder / "alone" / found.name
        text = command.replace(str(lingers), "LT_glue.py").replace(str(found), str(alone))
        words = text.split()
        done = launcher(words[2], *words[3:], cwd=folder)
        assert done.code == 0, done.err
        assert outcome(found) == outcome(alone), found
    launcher.close()


def test_an_array_that_is_preempted_and_fails_in_part(jobs, data, tmp_path):
    """Sixteen elements start at once: one is requeued in mid-round, one fails.

    Half of them share one cold cache. Another job meets its time limit. A second stage, which waits
    for the first, trains a ticket of the first.
    """
    out, cache, limited = tmp_path / "out", tmp_path / "cache", tmp_path / "limited"
    mask = out / "2" / "checkpoint-4" / "mask.pt"
    ticket = {"save_steps": None, "sparsities": None, "dir": "pre", "mask_dir": mask}
    half = ELEMENTS // 2
    lines = [
        line(data, out / "0", data / "lingers.py"),
        line(data, out / "1", task_name="NOPE"),
        *(line(data, out / str(n), seed=n) for n in range(2, half)),
        *(squad_line(data, out / str(n), seed=n, cache_dir=cache) for n in range(half, ELEMENTS)),
        "# stage 2",
        line(data, out / "last", "glue_trans.py", **ticket),
    ]
    (tmp_path / "list").write_text("\n".join(lines) + "\n")
    limited_line = line(data, limited, data / "lingers.py")
    (tmp_path / "limited.list").write_text(limited_line + "\n")
    array, restarted = "experiments/slurm/run_array.sbatch", set()

    def outputs():
        return {path.name: path.read_text() for path in tmp_path.glob("*.out")}

    def reaches(condition):
        warned = Path(f"{limited}.stopped").exists()  # a second warning would stop it again
        restarted.update(jobs.release(*["TimeLimit=60"] * warned))
        return condition()

    # SLURM looks every 30 seconds: it warns after 30 to 60
    limit = ["--time=2", "--signal=B:USR1@60", "-o", tmp_path / "limited.out"]
    jobs.submit("bash", array, tmp_path / "limited.list", *limit)
    wait_for(lambda: reaches(lambda: in_mid_round(limited)), outputs)
    first, _ = jobs.submit("bash", array, tmp_path / "list", "-o", tmp_path / "%x-%a.out")
    wait_for(lambda: reaches(lambda: in_mid_round(out / "0")), outputs)
    subprocess.run(["scontrol", "requeue", f"{first}_0"], check=True)
    wait_for(lambda: reaches(lambda: not jobs.queue()), outputs)
    ended = outputs()
    logs = {path.name: path.read_text() for path in (tmp_path / "list.logs").glob("*.log")}
    assert {job for job in restarted if job.startswith(f"{first}_")} == {f"{first}_0"}, ended
    assert "JOB REQUEUE" in ended["tickets-0.out"] and "requeueing" not in ended["tickets-0.out"]
    assert "stopped for the time limit (exit code 75); requeueing job" in ended["limited.out"]
    assert "checkpoint saved in" in logs["0001.log"]

    # only one element fails
    runs = [path for path in out.glob("*/run.json") if json.loads(path.read_text())["finished"]]
    finished = {path.parent.name for path in runs}
    assert finished == {"0", *map(str, range(2, ELEMENTS)), "last"}
    assert "error: --task_name NOPE" in logs["0002.log"] and "1 failed" in ended["tickets-1.out"]

    # the cold cache was filled once and is whole, without a warning
    names = [path.name for path in cache.iterdir()]
    assert len(names) == 2 and all(name.startswith("cached_") for name in names)
    assert [name for name, log in logs.items() if "warning" in log] == []

    undisturbed = {out / "0": lines[0], out / "2": lines[2], out / str(half): lines[half]}
    undisturbed |= {out / "last": lines[-1], limited: limited_line}
    check_undisturbed(undisturbed, data / "lingers.py", tmp_path)


WAITS = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
pathlib.Path(sys.argv[1]).write_text("")
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("command", "requeued"),
    [(["scancel"], False), (["scancel", "--batch", "--signal=USR1"], True)],
    ids=["cancelled", "time limit"],
)
def test_a_cancelled_job_stays_cancelled_and_a_job_at_its_limit_is_requeued(
    jobs, tmp_path, command, requeued
):
    """Both save and end with exit code 75; only a job with a time limit warning is requeued."""
    (tmp_path / "waits.py").write_text(WAITS)
    script = shutil.copy(launch.ROOT / "experiments" / "slurm" / "run_one.sbatch", tmp_path)
    words = ["python", tmp_path / "waits.py", tmp_path / "began"]
    (job,) = jobs.submit("sbatch", "--parsable", "-o", tmp_path / "out", script, *words)

    def state():
        return jobs.queue().get(job, ("gone", ""))[0]

    wait_for((tmp_path / "began").exists)
    subprocess.run([*command, job], check=True)
    wait_for(lambda: state() not in ("RUNNING", "COMPLETING"))
    time.sleep(1)
    assert state() == ("PENDING" if requeued else "gone")
    assert ("requeueing job" in (tmp_path / "out").read_text()) == requeued
