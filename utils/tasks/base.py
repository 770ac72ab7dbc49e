"""What a task is to IMP, fine-tuning and evaluation, and what GLUE and SQuAD share."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import BertConfig, BertTokenizer

from utils import files
from utils.config import ModelConfig, TrainingConfig
from utils.data.rows import LabelledRows, Rows, batches_by_length
from utils.errors import UserError
from utils.modeling import bert
from utils.modeling.bert import BertTaskModel
from utils.modeling.packing import Batch, Packed, pack, send
from utils.modeling.runtime import Runtime


class Task(Protocol):
    """A task with its data: training batches, their loss, and the evaluation on the dev set."""

    name: str  # as in results.jsonl: "mrpc", "squad", "mlm"
    model_class: type[BertTaskModel]
    tokenizer: BertTokenizer
    bert_config: BertConfig
    score_key: str  # the metric of the paper's tables
    scale: float = 100.0  # from that metric to percent points
    columns: tuple[str, ...] | None = None  # metrics of the printed table; None prints all

    @property
    def train_rows(self) -> int:
        """Number of training rows."""

    @property
    def dev_rows(self) -> int:
        """Number of rows, windows or blocks of the development set."""
        return 0

    def data_digest(self) -> str:
        """Identify the training data; a resumed run must find the same."""

    def dev_digest(self) -> str:
        """Identify the development set; a resumed run must find the same. "": no evaluation."""
        return ""

    def row_lengths(self, rows: np.ndarray) -> np.ndarray | None:
        """Return the tokens of these training rows, int64 [B]; None: do not split a batch."""

    def train_batch(self, rows: np.ndarray, seed: int, runtime: Runtime) -> Batch:
        """Return this process's share of the batch of the training rows `rows`.

        `seed` is for the task's own draws (the masked tokens of MLM).
        """

    def loss(self, model: BertTaskModel, batch: Any) -> torch.Tensor:
        """Return the mean loss over the batch, a tensor []."""

    def evaluate(
        self, model: BertTaskModel, runtime: Runtime, output: Path, step: int | None
    ) -> dict[str, float]:
        """Return the metrics on the development set.

        Files of the evaluation go to the folder `output`, among them those of `save_outcomes`;
        `step` is part of their names (None: the end of a run).
        """

    def write_predictions(self, model: BertTaskModel, runtime: Runtime, output: Path) -> list[Path]:
        """Write the predictions on the test sets that were loaded; return the files."""
        return []

    def save_outcomes(
        self, runtime: Runtime, output: Path, step: int | None, **outcomes: Any
    ) -> None:
        """Write an array per outcome, [n] over the examples, for experiments/significance.py.

        They determine the metric `score_key`: "predictions" and "labels"; or its numerators as
        `score_key` and, if they are not 1, its denominators as "weights".
        """
        if runtime.is_main:
            name = files.OUTCOMES.format(prefix="" if step is None else step)
            with files.atomic_file(output / name) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, dev=self.dev_digest(), metric=self.score_key, **outcomes)


def tokenizer_and_config(
    model: ModelConfig,
    lower_case: bool | None,
    classes: Sequence[str] = ("LABEL_0", "LABEL_1"),
    problem_type: str | None = None,
) -> tuple[BertTokenizer, BertConfig]:
    """Return vocabulary and configuration, with the head's `classes` instead of those stored.

    The default is right for every head without classes: two outputs, such as start and end.
    Raises UserError if vocabulary and configuration do not match.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    head = {"num_labels": len(numbers), "id2label": dict(enumerate(classes)), "label2id": numbers}
    changes = {**head, "problem_type": problem_type}
    config = bert.load_config(model.config_source, model.cache_dir, **changes)
    tokenizer = bert.load_tokenizer(model.tokenizer_source, lower_case, model.cache_dir)
    bert.check_vocabulary(config, tokenizer)
    return tokenizer, config


def input_file(training: TrainingConfig, mode: str, data: Any, flag: str) -> Path | None:
    """Return the file that `flag` names, None if the run is not in `mode` or reads a dataset.

    Raises UserError if the file is needed and not given.
    """
    if not getattr(training, mode) or not data.from_files:
        return None
    if getattr(data, flag) is None:
        raise UserError(f"--{mode} needs --{flag}, the file to read")
    return Path(getattr(data, flag))


@dataclass
class LabelledBatch(Batch):
    """Packed rows and their labels, [B] or [k, B], of the type in LabelledRows."""

    labels: torch.Tensor


class LabelledTask(Task):
    """A task with labels for its rows: GLUE and SQuAD. `train` is None without training."""

    train: LabelledRows | None
    logit_shape: tuple[int, ...]  # of a row's logits; SQuAD: of the longest window

    @property
    def train_rows(self) -> int:
        """Number of training rows."""
        return len(self._train.rows)

    def data_digest(self) -> str:
        """Identify the training data; a resumed run must find the same."""
        return self._train.digest()

    def row_lengths(self, rows: np.ndarray) -> np.ndarray | None:
        """Return the tokens of these training rows, int64 [B]."""
        return self._train.rows.lengths(rows)

    def train_batch(self, rows: np.ndarray, seed: int, runtime: Runtime) -> LabelledBatch:
        """Return this process's share of the batch of the training rows `rows`; draws nothing."""
        own, total = runtime.share_of_batch(rows)
        packed = self._pack(self._train.rows, own).to(runtime.device)
        labels = torch.from_numpy(self._train.labels[..., own])
        return LabelledBatch(packed, total, send(labels, runtime.device))

    @abstractmethod
    def logits(self, model: BertTaskModel, packed: Packed) -> torch.Tensor:
        """Return the head's outputs, [B, ...]."""

    @torch.no_grad()
    def predict(self, model: BertTaskModel, rows: Rows, runtime: Runtime) -> np.ndarray:
        """Return the logits of every row, float32 [n, *logit_shape]; the processes share the work.

        They are -inf for the tokens that shorter windows of SQuAD do not have.
        """
        model.eval()
        found = np.zeros((len(rows), *self.logit_shape), dtype=np.float32)
        for indices in runtime.share(self._batches_by_length(rows)):
            with runtime.autocast():
                logits = self.logits(model, self._pack(rows, indices).to(runtime.device))
            found[indices] = -np.inf
            found[indices, : logits.shape[1]] = logits.float().cpu().numpy()
        return runtime.sum(torch.from_numpy(found)).numpy()

    @property
    def _train(self) -> LabelledRows:
        assert self.train is not None, "loaded without do_train"
        return self.train

    def _pack(self, rows: Rows, indices: np.ndarray) -> Packed:
        return pack(rows, indices)

    def _batches_by_length(self, rows: Rows) -> list[np.ndarray]:
        return batches_by_length(rows)
