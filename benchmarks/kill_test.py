"""Kill runs with SIGKILL at random moments, resume them, and compare with undisturbed runs.

`kill_test.py --kills 100`: half of the kills come after a random time, half at a random file
operation (an open for writing, a write into a checkpoint or mask file, a rename, a removal, a new
folder). An undisturbed run counts these operations. After some kills the results file gets half a
line, as a power failure may leave it. Prints a table. Exits with code 1 if a run that was killed
and resumed differs from the undisturbed run in masks, weights, results or the list of files.
"""

import argparse
import json
import mmap
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
os.environ.update(dict.fromkeys(THREADS, "1"))
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import sklearn.metrics  # noqa: E402, F401 - imported once, before the forks
import tensorboardX  # noqa: E402, F401
import torch  # noqa: E402

import LT_glue  # noqa: E402, F401
from tests import launch, tiny  # noqa: E402
from utils import files  # noqa: E402
from utils.runs.records import read_owner  # noqa: E402

LONGEST = 600  # seconds that a run may take before it counts as hung
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = ("rename", "remove", "mkdir", "rmdir", "truncate", "chmod", "link", "symlink")


def commands(data: Path) -> dict[str, list]:
    """Return name -> script and flags: three rounds, or one network, of a tiny BERT."""
    glue = ["--task_name", "MRPC", "--data_dir", data / "glue", "--max_seq_length", 24]
    glue += ["--do_lower_case"]
    squad = ["--train_file", data / "squad/train-v1.1.json", "--max_seq_length", 48]
    squad += ["--predict_file", data / "squad/dev-v1.1.json", "--doc_stride", 16]
    squad += ["--max_query_length", 12, "--do_lower_case"]
    mlm = ["--mlm", "--train_data_file", data / "text/en.train", "--block_size", 24]
    mlm += ["--eval_data_file", data / "text/en.valid"]
    rounds = ["--max_steps", 9, "--save_steps", 3, "--sparsities", 0.3, 0.6, "--logging_steps", 2]
    alone = ["--dir", "pre", "--max_steps", 6, "--save_steps", 2, "--logging_steps", 3]
    rest = ["--model_name_or_path", data / "bert", "--output_dir", "out", "--cache_dir", "cache"]
    rest += ["--do_train", "--do_eval", "--evaluate_during_training", "--eval_all_checkpoints"]
    rest += ["--overwrite_output_dir", "--no_cuda", "--learning_rate", 1e-3]
    rest += ["--per_gpu_train_batch_size", 6]
    runs = {
        "IMP, GLUE": ["LT_glue.py", *glue, *rounds],
        "IMP, GLUE, rewinding to step 1": ["LT_glue.py", *glue, *rounds, "--rewind_steps", 1],
        "IMP, SQuAD": ["squad_trans.py", *squad, *rounds],
        "IMP, MLM": ["LT_pretrain.py", *mlm, *rounds],
        "IMP, MLM, as released": ["LT_pretrain.py", *mlm, *rounds, "--as_released"],
        "fine-tuning, GLUE": ["glue_trans.py", *glue, *alone, "--save_total_limit", 1],
        "fine-tuning, SQuAD": ["squad_trans.py", *squad, *alone],
        "fine-tuning, MLM": ["pretrain_trans.py", *mlm, *alone],
    }
    return {name: [*flags, *rest] for name, flags in runs.items()}


@dataclass(frozen=True)
class End:
    """How a process ended: exit code (-9: killed), file operations begun, seconds, stderr."""

    code: int
    operations: int
    seconds: float
    errors: str


def start(
    command: list,
    folder: Path,
    checkpoint_minutes: float,
    at_operation: int = 0,
    after: float = LONGEST,
) -> End:
    """Run a script in `folder` in a forked process.

    Kill it at its file operation number `at_operation` there, or after `after` seconds.
    """
    output = Path(tempfile.mkdtemp(prefix="kill-test-"))
    flags = [*map(str, command[1:]), "--checkpoint_minutes", str(checkpoint_minutes)]
    count, began = mmap.mmap(-1, 8), time.monotonic()  # memory that both processes see
    pid = os.fork()
    if pid == 0:
        count_operations(folder, count, at_operation)
        launch.become(str(ROOT / command[0]), flags, str(folder), str(output))
    handle = os.pidfd_open(pid)
    if not select.select([handle], [], [], after)[0]:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(handle)
    errors = (output / "err").read_text(errors="replace") if (output / "err").exists() else ""
    end = End(code, int.from_bytes(count[:], "little"), time.monotonic() - began, errors)
    shutil.rmtree(output)
    if code == -signal.SIGKILL and after == LONGEST and not at_operation:
        raise SystemExit(f"{command[0]} hangs:\n{end.errors}")
    return end


def count_operations(folder: Path, count: mmap.mmap, fatal: int) -> None:
    """Count this process's file operations under `folder`; die just before number `fatal`."""
    write = files.DigestStream.write

    def begin() -> None:
        number = int.from_bytes(count[:], "little") + 1
        count[:] = number.to_bytes(8, "little")
        if number == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, args: tuple) -> None:
        changes = event.startswith("os.") and event.removeprefix("os.") in CHANGES
        if event == "open":
            changes = isinstance(args[2], int) and bool(args[2] & WRITING)
        named = changes and isinstance(args[0], str | os.PathLike)
        if named and os.path.abspath(args[0]).startswith(str(folder)):
            begin()

    def counted_write(self: files.DigestStream, data: bytes) -> int:
        begin()
        return write(self, data)

    files.DigestStream.write = counted_write  # type: ignore[method-assign]
    sys.addaudithook(audit)


def outcome(folder: Path) -> dict[str, Any]:
    """Return all that must be the same: every file's bytes except events, rows without times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not name.startswith(files.EVENTS):
            found[name] = path.read_bytes()
    rows = found[files.RESULTS].splitlines()
    found[files.RESULTS] = [timeless(json.loads(row)) for row in rows]
    for name in (files.RUN, files.ALL_RESULTS):
        found[name] = timeless(json.loads(found[name]))
    return found


def timeless(row: dict) -> dict:
    """Return a row, run.json or all_results.json without what differs between processes."""
    times = ("wall_seconds", "eval_runtime", "eval_samples_per_second")
    kept = {key: value for key, value in row.items() if key not in times}
    for key in kept.keys() & {"args", "arguments"}:
        kept[key] = {k: v for k, v in kept[key].items() if k != "checkpoint_minutes"}
    return kept


def differences(expected: dict, found: dict) -> list[str]:
    """Return what is not the same, one string for each file or row."""
    name = files.RESULTS
    rows = enumerate(zip(expected[name], found[name], strict=False), 1)
    wrong = [f"{name}, row {number}" for number, (one, other) in rows if one != other]
    if len(expected[name]) != len(found[name]):
        wrong.append(f"{name}: {len(found[name])} rows, not {len(expected[name])}")
    rest = sorted((expected.keys() | found.keys()) - {name})
    return wrong + [name for name in rest if expected.get(name) != found.get(name)]


class Trial:
    """The undisturbed run of one command, and its runs with kills, counted."""

    def __init__(self, name: str, command: list, work: Path, draw: random.Random) -> None:
        self.name, self.command, self.work, self.draw = name, command, work, draw
        self.kills = self.at_operations = self.resumed = self.runs = self.same = 0
        self.wrong: list[str] = []
        self._empty_folder()
        whole = start(command, work, checkpoint_minutes=0)
        self._expect(whole, 0)
        self.expected = outcome(work / "out")
        self.operations, self.seconds = whole.operations, whole.seconds

    def _empty_folder(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)

    def _expect(self, end: End, code: int) -> None:
        if end.code != code:
            raise SystemExit(f"{self.name}: exit code {end.code}, not {code}\n{end.errors}")

    def run_once(self, most: int) -> None:
        """Run from an empty folder to the end, with at most `most` kills, then compare."""
        self._empty_folder()
        kills = 0
        while True:
            self.resumed += any((self.work / "out").glob(f"{files.STATE}-*-*-*.pt"))
            end = self._disturbed() if kills < most else start(self._command(), self.work, 10)
            if end.code != -signal.SIGKILL:
                break
            kills += 1
            self._append_half_a_row()
        self._expect(end, 0)
        self.kills, self.runs = self.kills + kills, self.runs + 1
        wrong = differences(self.expected, outcome(self.work / "out"))
        self.same += not wrong
        self.wrong += [f"{self.name}, run {self.runs} ({kills} kills): {what}" for what in wrong]

    def _finished(self) -> bool:
        owner = read_owner(self.work / "out")
        return owner is not None and owner.finished

    def _command(self) -> list:
        """Return the command; if a kill came after its end, without the flag that repeats it."""
        repeats = "--overwrite_output_dir" if self._finished() else None
        return [word for word in self.command if word != repeats]

    def _disturbed(self) -> End:
        command, minutes = self._command(), self.draw.choice([0, 0, 0.001, 10])
        if self.draw.random() < 0.5:
            return start(command, self.work, minutes, after=self.draw.uniform(0, self.seconds))
        operation = self.draw.randint(1, self.operations)
        end = start(command, self.work, minutes, at_operation=operation)
        self.at_operations += end.code == -signal.SIGKILL
        return end

    def _append_half_a_row(self) -> None:
        results = self.work / "out" / files.RESULTS
        if results.exists() and not self._finished() and self.draw.random() < 0.3:
            with open(results, "ab") as file:
                file.write(b'{"task": "mrpc", "metrics": {"acc": 0.5')

    def row(self) -> list:
        """Return the row of the table."""
        return [self.name, self.kills, self.at_operations, self.resumed, self.runs, self.same]


def print_table(trials: list[Trial]) -> None:
    """Print one line per command."""
    header = ["run", "kills", "at a file operation", "resumed from a checkpoint", "runs ended"]
    rows = [[*header, "same as undisturbed"], *([*map(str, trial.row())] for trial in trials)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for name, *cells in rows:
        aligned = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        print("  ".join([name.ljust(widths[0]), *aligned]))


def test(kills: int, seed: int, wanted: Callable[[str], bool]) -> int:
    """Kill every wanted command `kills` times; return 0 if all runs end the same."""
    trials = []
    with tempfile.TemporaryDirectory(prefix="kill-test-") as name:
        data = Path(name)
        tiny.bert(data / "bert", width=16)
        tiny.glue(data / "glue", "MRPC", train=20, dev=10)
        tiny.squad(data / "squad", train=3, dev=2)
        tiny.text(data / "text", train=60, valid=20)
        for number, (title, command) in enumerate(commands(data).items()):
            if not wanted(title):
                continue
            trial = Trial(title, command, data / "work", random.Random(f"{seed} {number}"))
            trials.append(trial)
            while trial.kills < kills:
                trial.run_once(min(6, kills - trial.kills))
            counts = f"{trial.kills} kills, {trial.same} of {trial.runs} runs the same"
            print(f"{title}: {counts}", file=sys.stderr, flush=True)
    print_table(trials)
    wrong = [line for trial in trials for line in trial.wrong]
    total = sum(trial.kills for trial in trials)
    print("\n".join(wrong or [f"all the same after {total} kills"]))
    return bool(wrong)


def main() -> int:
    """Parse the flags and test."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs for each run of the table")
    parser.add_argument("--seed", type=int, default=1, help="seed of the moments")
    text = "only the runs with this in their names, such as 'IMP, MLM'"
    parser.add_argument("--only", default="", help=text)
    args = parser.parse_args()
    torch.set_num_threads(1)
    return test(args.kills, args.seed, lambda name: args.only in name)


if __name__ == "__main__":
    raise SystemExit(main())
