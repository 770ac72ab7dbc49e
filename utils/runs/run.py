"""A run in its output folder, as every process sees it: rank 0 writes, the others follow."""

import contextlib
import functools
import hashlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from utils import files
from utils.config import RunConfig, SubnetworkConfig, TrainingConfig, flag_values
from utils.errors import UserError
from utils.modeling import saving
from utils.modeling.bert import BertTaskModel, check_compiler, load_model
from utils.modeling.runtime import Runtime
from utils.pruning import masks
from utils.pruning.origin import Origin
from utils.runs import checkpoint, ranks
from utils.runs.folder import NEUTRAL_FLAGS, Flags, HeldFolder, OutputFolder
from utils.runs.records import EvaluationRecord, append_record, read_records, remove_later_rows
from utils.tasks.base import Task
from utils.training import distributed
from utils.training.optimizer import PaperAdamW
from utils.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]  # of this code
THETA_0 = SubnetworkConfig(dir=None)  # pre-trained weights, random ones without a model
INPUTS = {  # of a run, as a checkpoint names their digests -> how messages name them
    "began_with": "weights or another mask",
    "data": "training data",
    "dev": "evaluation data",
    "vocabulary": "WordPieces (vocab.txt)",
    "config": "model settings (config.json)",
}
MODEL_SETTINGS = (  # those that no weight shows
    *("hidden_act", "layer_norm_eps", "num_attention_heads"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
)


@dataclass(frozen=True)
class Experiment:
    """What a script prepares: the task with its data, the model, and the flags."""

    task: Task
    model: BertTaskModel
    config: RunConfig
    runtime: Runtime
    init: str = "pre"  # the initial weights, as results rows name them
    init_info: Origin | None = None
    optimizer_class: type[PaperAdamW] = PaperAdamW

    @classmethod
    def prepare(
        cls, task: Task, config: RunConfig, runtime: Runtime, initial: SubnetworkConfig = THETA_0
    ) -> Self:
        """Load the model of `task` with the `initial` weights."""
        source = config.model.model_name_or_path
        init = initial.dir or ("rand" if source is None else "pre")
        seed, cache_dir = config.training.seed, config.model.cache_dir
        model = load_model(task.model_class, source, task.bert_config, seed, init, cache_dir)
        new = ", ".join(model.untrained)
        if new and init == "pre" and config.training.do_train and task.name == "mlm":
            files.warn(f"{source}: no MLM head; it is drawn by --seed {seed} ({new})")
        name, origin = saving.load_initial_weights(model, initial.weight_pertub, init)
        return cls(task, model, config, runtime, name, origin)

    def trainer(self) -> Trainer:
        """Return a trainer of the model on the task."""
        config = self.config.training
        return Trainer(self.model, self.task, config, self.runtime, self.optimizer_class)

    @property
    def arguments(self) -> dict[str, Any]:
        """Every flag's value, and the number of processes if several: it changes the batches."""
        values = flag_values(self.config)
        if self.runtime.world_size > 1:
            values["processes"] = self.runtime.world_size
        return values


def input_digests(experiment: Experiment) -> dict[str, str]:
    """Return a digest or the value of each of INPUTS; masks are part of the weights."""
    task, model = experiment.task, experiment.model
    settings, words = model.config.to_dict(), task.tokenizer.get_vocab().items()
    return {
        "began_with": masks.state_digest(model),
        "data": task.data_digest() if experiment.config.training.do_train else "",
        "dev": task.dev_digest(),
        "vocabulary": hashlib.sha256(repr(sorted(words)).encode()).hexdigest(),
        "config": ", ".join(f"{key} {settings.get(key)}" for key in MODEL_SETTINGS),
    }


def check_processes(experiment: Experiment) -> None:
    """Raise UserError in every process of torchrun if their inputs or flags (no paths) differ."""
    if experiment.runtime.world_size > 1:
        given = {k: v for k, v in experiment.arguments.items() if k not in NEUTRAL_FLAGS}
        flags = {f"--{k}": v for k, v in given.items() if not isinstance(v, str)}
        inputs = {INPUTS[key]: digest for key, digest in input_digests(experiment).items()}
        distributed.check_same(flags | inputs)


def start_runtime(training: TrainingConfig) -> Runtime:
    """Join the processes of torchrun, if any, and return where this one computes.

    Raises UserError if a precision flag or --compile cannot work on this machine.
    """
    watched, met = ranks.watch(), distributed.meet()
    if watched and met:
        watched.connect(*met)
    runtime = distributed.join(training.no_cuda, training.precision)
    if runtime.device.type == "cpu":
        if training.fp16:
            raise UserError("--fp16 needs a GPU; leave it out, or use --bf16")
        if training.tf32:
            raise UserError("--tf32 needs a GPU; leave it out")
    if training.tf32:
        torch.set_float32_matmul_precision("high")
    if training.compile:
        check_compiler(runtime.device)
    return runtime


@functools.cache
def code_commit(root: Path = ROOT) -> str:
    """Return the git commit of this code, with "+changes" if files differ; "unknown" without it."""
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        options: Any = {"stderr": subprocess.DEVNULL, "text": True, "timeout": 5}
        return str(subprocess.check_output([*command, "--dirty=+changes"], **options)).strip()
    return "unknown"


class Run:
    """The run of an experiment; on ranks above 0 `folder` is None and nothing is written."""

    def __init__(self, experiment: Experiment, folder: HeldFolder | None) -> None:
        self.experiment = experiment
        self.path = Path(experiment.config.output.output_dir)
        self.finished = self._has_read = False
        self._folder = folder
        self._started = time.monotonic()
        self._seconds_before = 0.0

    @classmethod
    @contextlib.contextmanager
    def open(cls, experiment: Experiment, defaults: Flags | None = None) -> Iterator["Run"]:
        """Hold the output folder for a run: a new one, or the unfinished one of the same arguments.

        Without --do_train, hold it to add evaluations; its files stay. `defaults`: what flags that
        are left out mean. Raises UserError if the folder may not be used or if the inputs of the
        processes differ.
        """
        check_processes(experiment)
        folder, output = None, experiment.config.output
        if experiment.runtime.is_main and not experiment.config.training.do_train:
            folder = HeldFolder(Path(output.output_dir))
        elif experiment.runtime.is_main:
            folder = OutputFolder(output, experiment.arguments, defaults)
        run = cls(experiment, folder)
        run.finished = distributed.broadcast(folder is not None and folder.finished)
        if run.finished:
            files.log.info(
                f"{run.path}: this run is finished; give --overwrite_output_dir to repeat it"
            )
        try:
            yield run
        finally:
            if folder:
                folder.close()

    def finish(self) -> None:
        """Mark the run finished."""
        if isinstance(self._folder, OutputFolder):
            self._folder.finish()

    def check_held(self) -> None:
        """Raise UserError if the folder was removed while this run was writing there."""
        if self._folder:
            self._folder.check_held()

    def seconds(self) -> float:
        """Return the wall time of this run so far, over all its processes."""
        return self._seconds_before + time.monotonic() - self._started

    def append(self, record: EvaluationRecord) -> None:
        """Add one evaluation to results.jsonl."""
        self.check_held()
        if self.experiment.runtime.is_main:
            append_record(self.path / files.RESULTS, record)

    def records(self) -> list[EvaluationRecord]:
        """Return the evaluations so far, oldest first; rows that are no record are reported."""
        records, problems = read_records(self.path / files.RESULTS)
        if not self._has_read:
            for problem in problems:
                files.warn(problem)
        self._has_read = True
        return [record for _, record in records]

    def save_checkpoint(self, content: dict[str, Any]) -> None:
        """Save `content` to resume from, with the size of the results. Raises OSError."""
        if not self._folder:
            return
        self.check_held()
        times = {"results_bytes": self._results_bytes(), "seconds": self.seconds()}
        checkpoint.save(self.path, content | times)

    def _results_bytes(self) -> int:
        path = self.path / files.RESULTS
        return path.stat().st_size if path.exists() else 0

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the last intact checkpoint, None to start from scratch; remove later results."""
        newest_first = checkpoint.find(self.path)[::-1]
        intact = next((found for found in newest_first if found.is_intact()), None)
        instead = f"resuming from {intact.path.name}" if intact else "starting from scratch"
        for corrupt in newest_first[: newest_first.index(intact) if intact else None]:
            files.warn(f"{corrupt.path}: corrupt checkpoint; {instead}")
        if intact:
            content = intact.load()
            self._remove_later_results(content["results_bytes"])
            self._seconds_before = content["seconds"]
            return content
        if self.experiment.config.output.should_continue:
            raise UserError(
                f"--should_continue: {self.path} holds no intact checkpoint; without the flag, "
                "this command starts from scratch"
            )
        self._remove_later_results(0)
        return None

    def _remove_later_results(self, size: int) -> None:
        """Remove the rows that this run wrote after the checkpoint, but not its evaluations."""
        path = self.path / files.RESULTS
        if self._folder and self._results_bytes() < size:
            files.warn(f"{path}: missing or truncated; earlier scores of this run are lost")
        elif self._folder and self._results_bytes() > size:
            remove_later_rows(path, size)
