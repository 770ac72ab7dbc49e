"""Loss and score on the line between two trainings of one ticket with different data orders.

Linear mode connectivity (Frankle et al. 2020; see barriers.py). Train a ticket twice, with the same
--seed and two values of --data_seed.
"""

if __name__ == "__main__":
    import _root  # noqa: F401

import math
import tempfile
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments import barriers, figures, paper
from utils import cli, files
from utils.config import (
    GlueConfig,
    ModelConfig,
    OutputConfig,
    SquadConfig,
    TextConfig,
    TrainingConfig,
)
from utils.data.rows import LabelledRows, batches_by_length
from utils.data.squad_windows import make_windows
from utils.errors import UserError
from utils.modeling import bert
from utils.modeling.bert import BertTaskModel
from utils.modeling.runtime import Runtime
from utils.pruning import masks
from utils.runs.console import format_table, progress_bar
from utils.runs.folder import differences, summarize
from utils.runs.records import EvaluationRecord, Owner, append_record, read_owner, read_records
from utils.runs.run import start_runtime
from utils.tasks.base import LabelledTask, Task
from utils.tasks.glue import GlueTask
from utils.tasks.mlm import MlmTask
from utils.tasks.squad import SquadTask

TASKS: dict[str, Any] = {"mlm": (MlmTask, TextConfig), "squad": (SquadTask, SquadConfig)}


def load_record(folder: Path) -> EvaluationRecord:
    """Return the final record of a finished training that kept its model. Raises UserError."""
    owner = read_owner(folder) or Owner()
    records, _ = read_records(folder / files.RESULTS)
    final = [record for _, record in records if record.final and record.method == "train"]
    if not owner.finished or not final:
        raise UserError(f"{folder}: no finished training; run its command to the end")
    for name in files.MODEL_FILES[:2]:
        if not (folder / name).is_file():
            remedy = "train again with --overwrite_output_dir, without --save_total_limit 0"
            raise UserError(f"{folder / name}: no such file; {remedy}")
    return final[-1]


def check_pair(one: EvaluationRecord, other: EvaluationRecord) -> None:
    """Raise UserError unless two trainings differ in --data_seed alone."""
    there, here = ({**record.args, "mask_dir": None} for record in (one, other))
    differing = differences(there, here, {})
    if one.mask_sha256 != other.mask_sha256:
        differing.insert(0, f"mask {one.mask_sha256} there, {other.mask_sha256} here")
    if not differing or not all(item.startswith("--data_seed ") for item in differing):
        problem = summarize(differing) or "nothing"
        remedy = "train one ticket with two values of --data_seed"
        raise UserError(f"RUN_A and RUN_B differ in {problem}; {remedy}")


def load_task(record: EvaluationRecord, folder: Path, runtime: Runtime) -> Task:
    """Return the task of a training with its development set, which has labels to train on."""
    kind, config = TASKS.get(record.task, (GlueTask, GlueConfig))
    names = {field.name for field in fields(config)}
    data = {name: value for name, value in record.args.items() if name in names}
    model = ModelConfig(model_name_or_path=str(folder), cache_dir=record.args.get("cache_dir"))
    training = TrainingConfig(do_eval=True, no_cuda=runtime.device.type == "cpu")
    task = kind.load(config(**data), model, training, OutputConfig(output_dir=str(folder)))
    if isinstance(task, SquadTask):
        assert task.dev is not None, "loaded with do_eval"
        windows = make_windows(task.dev[0], task.tokenizer, task.config, training=True)
        return replace(task, train=LabelledRows(windows.rows, windows.labels))
    return replace(task, train=next(iter(task.dev.values()))) if kind is GlueTask else task


@torch.no_grad()
def dev_loss(
    task: Task, model: BertTaskModel, runtime: Runtime, metrics: dict[str, float]
) -> float:
    """Return the mean loss over the development set, given its metrics.

    SQuAD: without the questions that a training leaves out.
    """
    if not isinstance(task, LabelledTask):
        return math.log(metrics["perplexity"])  # over fixed masks
    model.eval()
    assert task.train is not None
    total = 0.0
    for rows in batches_by_length(task.train.rows):
        total += len(rows) * task.loss(model, task.train_batch(rows, 0, runtime)).item()
    return total / task.train_rows


def walk(
    folders: tuple[Path, Path], record: EvaluationRecord, points: int
) -> Iterator[EvaluationRecord]:
    """Yield a record per point on the line between two models, trained as `record` says.

    Its metrics "alpha", from 0 to 1, and "loss" are added to the task's.
    """
    runtime = start_runtime(TrainingConfig(do_eval=True, no_cuda=bool(record.args.get("no_cuda"))))
    task = load_task(record, folders[0], runtime)
    model, end = (bert.load_model(task.model_class, str(f), task.bert_config, 0) for f in folders)
    start, theirs = masks.snapshot(model), masks.snapshot(end)
    nn.Module.to(model, runtime.device)
    args = record.args | {"data_seed": None, "runs": list(map(str, folders))}
    base = replace(record, method="connectivity", args=args)
    for alpha in np.linspace(0, 1, points).tolist():
        masks.rewind(model, {n: torch.lerp(start[n], theirs[n], alpha) for n in start})
        with tempfile.TemporaryDirectory() as folder:
            metrics = task.evaluate(model, runtime, Path(folder), None)
        metrics |= {"alpha": alpha, "loss": dev_loss(task, model, runtime, metrics)}
        finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        value = finite[task.score_key]
        yield replace(base, metrics=finite, score=None if value is None else task.scale * value)


def check_output(path: Path, runs: tuple[Path, Path]) -> None:
    """Raise UserError if `path` is no .jsonl file or holds anything but the line of `runs`."""
    if path.suffix != ".jsonl":
        raise UserError(f"--output {path} must end in .jsonl")
    if path.is_dir():
        raise UserError(f"--output {path} is a folder; give a file")
    if path.is_file():
        records, problems = read_records(path)
        own = all(record.args.get("runs") == list(map(str, runs)) for _, record in records)
        if problems or not own:
            raise UserError(f"{path} exists and is not the line of these runs; give --output FILE")


def main(argv: list[str] | None = None) -> None:
    """Evaluate the line, write its records and curve, and print them."""
    parser = cli.OneLineParser(__doc__)
    add = parser.add_argument
    add("run_a", type=Path, help="output folder of a training that kept its model")
    add("run_b", type=Path, help="output folder of the same training with another --data_seed")
    text = f"file of the records (ours: RUN_A-RUN_B/{files.CONNECTIVITY}); the curve goes beside it"
    add("--output", type=Path, help=text)
    add(
        "--points", type=int, default=barriers.POINTS, help="points on the line, both ends included"
    )
    args = parser.parse_args(argv)
    if args.points < barriers.FEWEST:
        raise UserError(f"--points {args.points} must be at least {barriers.FEWEST}")
    runs = (args.run_a, args.run_b)
    one, other = map(load_record, runs)
    check_pair(one, other)
    name = "-".join(run.resolve().name for run in runs)
    output = args.output or args.run_a.resolve().parent / name / files.CONNECTIVITY
    check_output(output, runs)

    records = []
    with progress_bar(args.points, unit="point", shown=True) as bar:
        for record in walk(runs, one, args.points):
            records.append(record)
            bar.update()
    with files.atomic_file(output) as temporary:
        for record in records:
            append_record(temporary, record)
    line = barriers.Line.of(records)
    if figures.INSTALLED:
        figures.write_lines([line], output.with_suffix(".png"))
    rows = [
        [f"{value:.4f}" for value in row]
        for row in zip(line.alpha, line.loss, line.error, strict=True)
    ]
    print(format_table(["alpha", *barriers.MEASURES], rows))
    loss, error = map(line.barrier, barriers.MEASURES)
    title = f"{paper.NAMES.get(line.task, line.task)}, {line.label}"
    print(f"{title}: barrier {loss:.4f} in loss, {error:.2f} points in error; {output}")


if __name__ == "__main__":
    cli.run(main)
