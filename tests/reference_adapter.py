"""The only code of the parity and compatibility tests that touches the project's internals.

After a change of the project's structure, adapt only this file of these tests:

- `recorded(draws, after_step, stop_after)`: scripts that run inside it use the reference's random
  draws. It yields a `Recording` of the steps, the model and the task.
- `load_glue`, `glue_features`, `glue_metrics`: GLUE files to rows, texts to rows, predictions to
  metrics.
- `squad_examples`, `squad_windows`, `answers_from_logits`, `squad_metrics`: the same for SQuAD.
- `mlm_blocks`: text to blocks, with the tokenizer's special ids.
- `read_mask`, `write_mask`: a mask file as a user's script reads and writes it.
- `read_perturbed`: perturbed weights as `--weight_pertub` reads them.
- `current_names`: the recorded arguments of a run under the names of today's flags.
"""

import contextlib
import os
import signal
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from benchmarks.baseline import make_rows
from utils.config import SquadConfig
from utils.data import glue, squad
from utils.data import squad_windows as windows
from utils.data.rows import Rows
from utils.data.text import Text, load_blocks
from utils.modeling import bert, saving
from utils.modeling.packing import pack
from utils.modeling.runtime import Runtime
from utils.pruning import mask_files
from utils.pruning.origin import Origin
from utils.runs import records
from utils.runs.monitor import Monitor
from utils.runs.signals import RESUME_EXIT_CODE
from utils.tasks import metrics, squad_answers
from utils.tasks.mlm import IGNORED, MlmBatch, MlmTask
from utils.training.order import DataOrder

CPU = Runtime(torch.device("cpu"))
STOPPED = RESUME_EXIT_CODE  # exit code of a script that a signal stopped

# ---- training


@dataclass(frozen=True)
class Draws:
    """Draws of the reference that a run uses instead of its own generators; None: its own."""

    head: dict[str, np.ndarray] | None = None  # initial values, by their names in the model
    order: list[np.ndarray] | None = None  # row order by epoch, with --as_released or fine-tuning
    mlm_batches: list[tuple[np.ndarray, np.ndarray]] | None = None  # ids and labels, [B, W] each


@dataclass
class Recording:
    """What a script did: every step of this process, the model and its task."""

    steps: list[dict[str, float]] = field(default_factory=list)  # loss, lr, grad_norm
    model: torch.nn.Module | None = None
    task: object = None
    first_mask: dict[str, torch.Tensor] | None = None  # of the first step; empty: the dense model

    def evaluate(self) -> dict[str, float]:
        """The metrics of the model in its current state, by the task's own evaluation."""
        with tempfile.TemporaryDirectory() as folder:
            return self.task.evaluate(self.model, CPU, Path(folder), None)

    def logits(self) -> np.ndarray:
        """GLUE: logits of the first development set, float32 [n, labels]."""
        dev = next(iter(self.task.dev.values()))
        return self.task.predict(self.model, dev.rows, CPU)

    def evaluate_mlm(self, batches: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        """MLM: the metrics under the released names, by the task's own evaluation of `batches`."""
        starts = np.cumsum([0, *(len(ids) for ids, _ in batches)]).tolist()
        given = [_mlm_batch(*batch, start) for batch, start in zip(batches, starts, strict=False)]
        with mock.patch.object(type(self.task), "_evaluation_batches", lambda *_: iter(given)):
            found = self.evaluate()
        return {"perplexity": found["perplexity"], "acc": 100 * found["accuracy"]}

    def state(self) -> dict[str, torch.Tensor]:
        """The model's tensors, masks included."""
        return {k: v for k, v in self.model.state_dict().items() if "position_ids" not in k}


@contextlib.contextmanager
def recorded(
    draws: Draws | None = None,
    after_step: Callable[[Recording], None] | None = None,
    stop_after: int | None = None,
) -> Iterator[Recording]:
    """Scripts run in this process use `draws`, and what they do is recorded.

    `after_step(recording)` is called after each step, before any pruning. `stop_after`: a SIGTERM
    arrives after that many steps, so that the script saves a checkpoint and exits.
    """
    draws, recording = draws or Draws(), Recording()
    start, continue_after = Monitor.__init__, Monitor.after_step

    def init(self, trainer, *args):
        start(self, trainer, *args)
        recording.model, recording.task = trainer.model, trainer.task
        state = trainer.model.state_dict()
        for name, value in (draws.head or {}).items():
            state[name].copy_(torch.from_numpy(value))

    def record(self, step, learning_rate, loss, grad_norm, batches):
        if not recording.steps:
            recording.first_mask = _mask_of(recording.model)
        values = {"loss": float(loss), "lr": learning_rate, "grad_norm": float(grad_norm)}
        recording.steps.append(values)
        if after_step:
            after_step(recording)
            recording.model.train()
        if len(recording.steps) == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        continue_after(self, step, learning_rate, loss, grad_norm, batches)

    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(Monitor, "__init__", init))
        patches.enter_context(mock.patch.object(Monitor, "after_step", record))
        if draws.order is not None:
            fixed = lambda self, round_, epoch: draws.order[epoch]  # noqa: E731
            patches.enter_context(mock.patch.object(DataOrder, "permutation", fixed))
        if draws.mlm_batches is not None:
            fed = _feeder(draws.mlm_batches)
            patches.enter_context(mock.patch.object(MlmTask, "train_batch", fed))
        yield recording


def _mask_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.bool().clone() for k, v in model.named_buffers() if k.endswith("_mask")}


def _feeder(batches: list[tuple[np.ndarray, np.ndarray]]) -> Callable:
    """A `train_batch` that returns the stored batches in turn, if they mask our rows."""
    stored = iter(batches)

    def train_batch(self, rows, seed, runtime):
        ids, labels = next(stored)
        gathered = self.train.gather(rows)
        ours = np.stack([gathered[row][0] for row in range(len(rows))])
        assert np.array_equal(np.where(labels == IGNORED, ours, labels), ours)
        assert np.array_equal(ids[labels == IGNORED], ours[labels == IGNORED])
        return _mlm_batch(ids, labels)

    return train_batch


def _mlm_batch(ids: np.ndarray, labels: np.ndarray, first_block: int = 0) -> MlmBatch:
    rows = make_rows(ids.tolist(), np.zeros_like(ids).tolist())
    positions = torch.from_numpy(np.flatnonzero(labels.ravel() != IGNORED))
    targets = torch.from_numpy(labels.ravel())[positions]
    packed = pack(rows, np.arange(len(rows)))
    blocks = first_block + positions // labels.shape[1]
    return MlmBatch(packed, max(1, len(targets)), positions, targets, blocks)


# ---- masks and weights


def read_mask(path: Path) -> dict[str, torch.Tensor]:
    """The mask in a file, as bool tensors."""
    found = torch.load(path, weights_only=True)
    shapes = {name.removesuffix(".weight_mask"): mask.shape for name, mask in found.items()}
    return mask_files.load(path, shapes)


def write_mask(path: Path, mask: dict[str, torch.Tensor]) -> None:
    """Write a mask file that `--mask_dir` reads."""
    mask_files.save(mask, path, Origin())


def read_perturbed(path: Path | None, source: Path) -> dict[str, torch.Tensor]:
    """The encoder of the model in `source` after `--weight_pertub path`; None: as it is."""
    config = bert.load_config(str(source), None, num_labels=2)
    model = bert.load_model(bert.SequenceClassifier, str(source), config, 1)
    saving.load_initial_weights(model, path and str(path), "pre")
    return {k: v for k, v in model.state_dict().items() if k.startswith("bert.")}


def current_names(arguments: dict) -> dict:
    """Recorded arguments under today's names: earlier versions called --dir "init"."""
    return records.current_names(arguments)


# ---- data and metrics


@dataclass(frozen=True)
class GlueData:
    """One split of a GLUE task. rows: ids and token types of each row, without padding."""

    text_a: list[str]
    text_b: list[str] | None
    rows: list[tuple[list[int], list[int]]]
    labels: np.ndarray
    label_list: list[str | None]


def load_glue(task: str, folder: Path, split: str, source: Path, length: int) -> GlueData:
    """Read a split ("train" or "dev") of a GLUE folder."""
    spec = glue.find_spec(task)
    files = spec.files
    file = files[split] if split in files else next(v for k, v in files.items() if k != "train")
    examples = glue.read_examples(spec, folder / file)
    rows = glue.features(examples, bert.load_tokenizer(str(source), True), length)
    labels = list(spec.labels or [None])
    return GlueData(examples.text_a, examples.text_b, _lists(rows), examples.labels, labels)


def glue_features(
    text_a: str, text_b: str | None, source: Path, length: int
) -> tuple[list[int], list[int]]:
    """WordPiece ids and token types of one text or pair."""
    pair = None if text_b is None else [text_b]
    examples = glue.GlueExamples([text_a], pair, np.zeros(1, np.int64))
    rows = glue.features(examples, bert.load_tokenizer(str(source), True), length)
    return _lists(rows)[0]


def _lists(rows: Rows) -> list[tuple[list[int], list[int]]]:
    return [(rows[at][0].tolist(), rows[at][1].tolist()) for at in range(len(rows))]


def glue_metrics(task: str, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics of one GLUE task."""
    spec = glue.find_spec(task)
    return metrics.glue_metrics(spec.metric, predictions, labels, spec.with_f1)


def squad_examples(file: Path, v2: bool) -> list[dict]:
    """The questions of a file, under the keys of the reference."""
    return [
        {
            "qas_id": e.id,
            "question_text": e.question,
            "context_text": e.context,
            "is_impossible": not e.answers,
            "answers": [{"text": t, "answer_start": start} for t, start in e.answers],
        }
        for e in squad.read_squad(file, v2)
    ]


def _windows(
    file: Path, source: Path, sizes: tuple[int, int, int], training: bool, v2: bool
) -> tuple[list[squad.SquadExample], windows.SquadWindows]:
    length, stride, query = sizes
    config = SquadConfig(max_seq_length=length, doc_stride=stride, max_query_length=query)
    examples = squad.read_squad(file, v2)
    tokenizer = bert.load_tokenizer(str(source), True)
    return examples, windows.make_windows(examples, tokenizer, config, training)


def squad_windows(
    file: Path, source: Path, sizes: tuple[int, int, int], training: bool, v2: bool = False
) -> list[dict]:
    """The windows of a file, under the keys of the reference and without padding.

    sizes: window length, stride, longest question.
    """
    examples, found = _windows(file, source, sizes, training, v2)
    features = []
    for at in range(len(found)):
        ids, types = found.rows[at]
        begin, end = found.starts[at : at + 2]
        first, stop = int(found.first[at]), len(ids) - 1
        chars = found.char_start[found.base[at] : found.base[at] + stop - first]
        context = examples[found.example[at]].context
        words = [word.start() for word in windows.WORD.finditer(context)]
        features.append(
            {
                "input_ids": ids.tolist(),
                "token_type_ids": types.tolist(),
                "example_index": int(found.example[at]),
                "start_position": int(found.start[at]),
                "end_position": int(found.end[at]),
                "token_is_max_context": found.max_context[begin:end].tolist(),
                "token_to_orig_map": {
                    str(first + i): bisect_right(words, char) - 1 for i, char in enumerate(chars)
                },
            }
        )
    return features


def answers_from_logits(
    file: Path, source: Path, sizes: tuple[int, int, int], start: np.ndarray, end: np.ndarray
) -> tuple[dict[str, str], dict[str, list[dict]]]:
    """Answers and n-best lists from the logits of every window."""
    examples, found = _windows(file, source, sizes, training=False, v2=False)
    answers = squad_answers.best_answers(examples, found, start, end, SquadConfig())
    return answers.texts, answers.nbest


def squad_metrics(file: Path, predictions: dict[str, str]) -> dict[str, float]:
    """The scores of answers, by the rules of the released code (v2.0)."""
    config = SquadConfig(version_2_with_negative=True)
    return squad_answers.squad_metrics(squad.read_squad(file, False), predictions, config)


@dataclass(frozen=True)
class MlmData:
    """Text in blocks: int64 [n, W], special tokens included; and what masking needs to know."""

    blocks: np.ndarray
    special_ids: list[int]
    mask_id: int
    vocab_size: int


def mlm_blocks(file: Path, source: Path, block_size: int, cache: Path) -> MlmData:
    """Cut a text into blocks."""
    tokenizer = bert.load_tokenizer(str(source), None)
    blocks = load_blocks(Text(file, tokenizer, threads=1), block_size, cache)
    rows = blocks.gather(np.arange(len(blocks))).ids.reshape(-1, block_size).astype(np.int64)
    special = [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id]
    return MlmData(rows, special, tokenizer.mask_token_id, len(tokenizer))


def padded_glue_batch(
    task: str, folder: Path, source: Path, length: int
) -> Callable[[np.ndarray], dict[str, torch.Tensor]]:
    """A function from training rows to transformers' inputs, padded to `length`."""
    data = load_glue(task, folder, "train", source, length)

    def batch(rows: np.ndarray) -> dict[str, torch.Tensor]:
        names = ("input_ids", "token_type_ids", "attention_mask")
        found = {name: torch.zeros(len(rows), length, dtype=torch.int64) for name in names}
        for at, row in enumerate(rows):
            ids, types = data.rows[row]
            for name, values in zip(names, (ids, types, [1] * len(ids)), strict=True):
                found[name][at, : len(ids)] = torch.tensor(values)
        return {**found, "labels": torch.from_numpy(np.asarray(data.labels)[rows])}

    return batch
