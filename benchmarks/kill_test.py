"""Kill runs with SIGKILL at random moments, resume each, and compare with the undisturbed run: `kill_test.py --kills 100`.

Half of the kills come after a random time, half at a random file operation (an open for writing, a write into a state or
mask file, a rename, a removal, a new folder): all such operations are counted in an undisturbed run. After some kills the
results file gets half a line, as a power cut may leave one. Ends with a table, and with exit code 1 if any run that was
killed and resumed did not end with the undisturbed run's masks, weights, results rows and list of files, bit for bit.
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

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
os.environ.update(dict.fromkeys(THREADS, "1"))
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import sklearn.metrics  # noqa: E402, F401 - what the scripts import late: the forked processes then have it
import tensorboardX  # noqa: E402, F401
import torch  # noqa: E402

import LT_glue  # noqa: E402, F401
from tests import launch, tiny  # noqa: E402
from utils import files  # noqa: E402

LONGEST = 600  # seconds that a run may take before it counts as hung
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.chmod",
    "os.link",
    "os.symlink",
}


def commands(data: Path) -> dict[str, list]:
    """Name -> script and flags of the runs: three rounds, or one network, on a tiny BERT with dropout."""
    glue = [
        "--task_name",
        "MRPC",
        "--data_dir",
        data / "glue",
        "--max_seq_length",
        24,
        "--do_lower_case",
    ]
    squad = [
        "--train_file",
        data / "squad/train-v1.1.json",
        "--predict_file",
        data / "squad/dev-v1.1.json",
        "--max_seq_length",
        48,
        "--doc_stride",
        16,
        "--max_query_length",
        12,
        "--do_lower_case",
    ]
    mlm = [
        "--train_data_file",
        data / "text/en.train",
        "--eval_data_file",
        data / "text/en.valid",
        "--mlm",
        "--block_size",
        24,
    ]
    rounds = ["--max_steps", 9, "--save_steps", 3, "--sparsities", 0.3, 0.6, "--logging_steps", 2]
    alone = ["--dir", "pre", "--max_steps", 6, "--save_steps", 2, "--logging_steps", 3]
    rest = [
        "--model_name_or_path",
        data / "bert",
        "--output_dir",
        "out",
        "--cache_dir",
        "cache",
        "--do_train",
        "--do_eval",
        "--evaluate_during_training",
        "--eval_all_checkpoints",
        "--overwrite_output_dir",
        "--no_cuda",
        "--learning_rate",
        1e-3,
        "--per_gpu_train_batch_size",
        6,
    ]
    return {
        name: [*flags, *rest]
        for name, flags in {
            "IMP, GLUE": ["LT_glue.py", *glue, *rounds],
            "IMP, GLUE, rewinding to step 1": ["LT_glue.py", *glue, *rounds, "--rewind_steps", 1],
            "IMP, SQuAD": ["squad_trans.py", *squad, *rounds],
            "IMP, MLM": ["LT_pretrain.py", *mlm, *rounds],
            "IMP, MLM, as released": ["LT_pretrain.py", *mlm, *rounds, "--as_released"],
            "fine-tuning, GLUE": ["glue_trans.py", *glue, *alone, "--save_total_limit", 1],
            "fine-tuning, SQuAD": ["squad_trans.py", *squad, *alone],
            "fine-tuning, MLM": ["pretrain_trans.py", *mlm, *alone],
        }.items()
    }


@dataclass(frozen=True)
class End:
    """How a process ended: exit code (-9: killed), the file operations it had begun, its seconds, its stderr."""

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
    """Run a script in `folder` in a forked process; kill it at its n-th file operation there, or after so many seconds."""
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
    """Count this process's file operations under `folder` from here on; die at the `fatal`-th before it takes place."""
    here = str(folder)

    def seen() -> None:
        number = int.from_bytes(count[:], "little") + 1
        count[:] = number.to_bytes(8, "little")
        if number == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, args: tuple) -> None:
        changes = event in CHANGES or (
            event == "open" and isinstance(args[2], int) and args[2] & WRITING
        )
        if (
            changes
            and isinstance(args[0], str | os.PathLike)
            and os.path.abspath(args[0]).startswith(here)
        ):
            seen()

    original = files.Stream.write

    def write(self, data) -> int:
        seen()
        return original(self, data)

    files.Stream.write = write
    sys.addaudithook(audit)


def outcome(folder: Path) -> dict[str, object]:
    """All that a run leaves and must leave again: every file's bytes but TensorBoard's, rows without times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not name.startswith(files.EVENTS):
            found[name] = path.read_bytes()
    found[files.RESULTS] = [
        timeless(json.loads(line)) for line in found[files.RESULTS].splitlines()
    ]
    found[files.RUN] = timeless(json.loads(found[files.RUN]))
    return found


def timeless(row: dict) -> dict:
    """A results row, or the run's owner, without what differs from process to process."""
    kept = {key: value for key, value in row.items() if key != "wall_seconds"}
    for key in ("args", "arguments"):
        if key in kept:
            kept[key] = {
                name: value for name, value in kept[key].items() if name != "checkpoint_minutes"
            }
    return kept


def differences(expected: dict, found: dict) -> list[str]:
    """What is not the same, a file or a row each."""
    rows = zip(expected[files.RESULTS], found[files.RESULTS], strict=False)
    wrong = [
        f"{files.RESULTS}, row {number}"
        for number, (one, other) in enumerate(rows, 1)
        if one != other
    ]
    if len(expected[files.RESULTS]) != len(found[files.RESULTS]):
        wrong.append(
            f"{files.RESULTS}: {len(found[files.RESULTS])} rows, not {len(expected[files.RESULTS])}"
        )
    rest = sorted((expected.keys() | found.keys()) - {files.RESULTS})
    return wrong + [name for name in rest if expected.get(name) != found.get(name)]


class Trial:
    """One command's undisturbed run, and its runs with kills; counts what happened."""

    def __init__(self, name: str, command: list, work: Path, draw: random.Random):
        self.name, self.command, self.work, self.draw = name, command, work, draw
        self.kills = self.at_operations = self.resumed = self.runs = self.same = 0
        self.wrong: list[str] = []
        self._fresh()
        whole = start(command, work, checkpoint_minutes=0)
        self._expect(whole, 0)
        self.expected = outcome(work / "out")
        self.operations, self.seconds = whole.operations, whole.seconds

    def _fresh(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)

    def _expect(self, end: End, code: int) -> None:
        if end.code != code:
            raise SystemExit(f"{self.name}: exit code {end.code}, not {code}\n{end.errors}")

    def run_once(self, most: int) -> None:
        """A run from an empty folder to its end, killed at most so often, then compared."""
        self._fresh()
        kills = 0
        while True:
            self.resumed += any((self.work / "out").glob(f"{files.STATE}-*-*-*.pt"))
            end = (
                self._go_on()
                if kills < most
                else start(self.command, self.work, checkpoint_minutes=10)
            )
            if end.code != -signal.SIGKILL:
                break
            kills += 1
            self._tear_results()
        self._expect(end, 0)
        self.kills, self.runs = self.kills + kills, self.runs + 1
        wrong = differences(self.expected, outcome(self.work / "out"))
        self.same += not wrong
        self.wrong += [f"{self.name}, run {self.runs} ({kills} kills): {what}" for what in wrong]

    def _go_on(self) -> End:
        minutes = self.draw.choice([0, 0, 0.001, 10])
        if self.draw.random() < 0.5:
            return start(self.command, self.work, minutes, after=self.draw.uniform(0, self.seconds))
        end = start(
            self.command, self.work, minutes, at_operation=self.draw.randint(1, self.operations)
        )
        self.at_operations += end.code == -signal.SIGKILL
        return end

    def _tear_results(self) -> None:
        results = self.work / "out" / files.RESULTS
        if results.exists() and self.draw.random() < 0.3:
            with open(results, "ab") as file:
                file.write(b'{"task": "mrpc", "metrics": {"acc": 0.5')

    def row(self) -> list:
        """The line of the table."""
        return [self.name, self.kills, self.at_operations, self.resumed, self.runs, self.same]


def print_table(trials: list[Trial]) -> None:
    """One line a command."""
    header = [
        "run",
        "kills",
        "at a file operation",
        "resumed from a checkpoint",
        "runs ended",
        "same as undisturbed",
    ]
    rows = [header, *([str(cell) for cell in trial.row()] for trial in trials)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(header))]
    for row in rows:
        print(
            "  ".join(
                [
                    row[0].ljust(widths[0]),
                    *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
                ]
            )
        )


def test(kills: int, seed: int, wanted: Callable[[str], bool]) -> int:
    """Kill every wanted command so often; 0 if all runs ended the same."""
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
            trials.append(
                trial := Trial(title, command, data / "work", random.Random(f"{seed} {number}"))
            )
            while trial.kills < kills:
                trial.run_once(min(6, kills - trial.kills))
            print(
                f"{title}: {trial.kills} kills, {trial.same} of {trial.runs} runs the same",
                file=sys.stderr,
                flush=True,
            )
    print_table(trials)
    wrong = [line for trial in trials for line in trial.wrong]
    print(
        "\n".join(wrong)
        if wrong
        else f"all the same after {sum(trial.kills for trial in trials)} kills"
    )
    return bool(wrong)


def main() -> int:
    """Parse the flags and test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs for each run of the table")
    parser.add_argument("--seed", type=int, default=1, help="seed of the moments")
    parser.add_argument(
        "--only", default="", help="only the runs whose names hold this, such as 'IMP, MLM'"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    return test(args.kills, args.seed, lambda name: args.only in name)


if __name__ == "__main__":
    raise SystemExit(main())
