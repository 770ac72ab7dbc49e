"""SQuAD: its data, its model, its batches, its evaluation."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from utils import distributed, squad_answers, squad_data, squad_json
from utils.distributed import mine, my_rows, total_array
from utils.metrics import SCORE
from utils.models import QuestionAnswerer, encode
from utils.rows import Batch, Packed, by_length, checksum, pack, send
from utils.training import autocast


@dataclass
class SquadBatch(Batch):
    """Packed windows, and where the answer starts and ends in each: int64 [B], [B]. The total is the number of windows."""

    start: torch.Tensor
    end: torch.Tensor


@dataclass(frozen=True)
class AnswerOptions:
    """How answers are read from logits, by the flags of the same names."""

    n_best_size: int = 20
    max_answer_length: int = 30
    v2: bool = False
    null_score_diff_threshold: float = 0.0
    verbose: bool = False


class SquadTask:
    """SQuAD v1.1 or v2.0. `as_released_length`: pad every window to it, padding counting in the loss's softmax."""

    name, score_key, scale, model_class = (
        "squad",
        SCORE["squad"],
        1.0,
        QuestionAnswerer,
    )  # metrics are in percent
    columns = ("f1", "exact")  # of the printed table

    def __init__(self, options: AnswerOptions, as_released_length: int | None = None):
        self.options, self.pad_to = options, as_released_length
        self.train: squad_data.SquadWindows | None = None
        self.dev: tuple[list[squad_json.SquadExample], squad_data.SquadWindows] | None = None

    @property
    def train_rows(self) -> int:
        return len(self.train)

    def data_checksum(self) -> str:
        """Tells the training data from others'."""
        return checksum(
            self.train.rows.starts, self.train.rows.ids, self.train.start, self.train.end
        )

    def lengths(self, rows: np.ndarray) -> np.ndarray | None:
        """Tokens of these training rows, int64 [B]; None as released: such a batch goes through the model as a whole."""
        return None if self.pad_to else self.train.rows.lengths(rows)

    def train_batch(
        self, rows: np.ndarray, place: tuple[int, ...], device: torch.device
    ) -> SquadBatch:
        """The batch of these windows; nothing in it is random, so `place` is not used."""
        w, (own, total) = self.train, my_rows(rows)
        start, end = (
            send(torch.from_numpy(a[own].astype(np.int64)), device) for a in (w.start, w.end)
        )
        return SquadBatch(pack(w.rows, own, self.pad_to).to(device), total, start, end)

    def logits(self, model: nn.Module, packed: Packed) -> torch.Tensor:
        """Start and end logits, [2, B, W], -inf where a window has no token."""
        flat = model.qa_outputs(encode(model.bert, packed)).float()
        grid = flat.new_full((len(packed.lengths) * packed.width, 2), -torch.inf)
        windows = grid.index_copy(0, packed.slots, flat).view(-1, packed.width, 2)
        return windows[: len(packed.first)].permute(2, 0, 1)

    def loss(self, model: nn.Module, batch: SquadBatch) -> torch.Tensor:
        """Mean of the cross-entropies of start and end over the windows."""
        start, end = self.logits(model, batch.packed)
        width = batch.packed.width
        both = sum(
            F.cross_entropy(logits, at.clamp(max=width), ignore_index=width, reduction="sum")
            / batch.total
            for logits, at in ((start, batch.start), (end, batch.end))
        )
        return both / 2

    @torch.no_grad()
    def predict(
        self, model: nn.Module, device: torch.device, precision: str = "fp32"
    ) -> tuple[list, list]:
        """Start and end logits of every window of the evaluation file: two lists of float32 arrays, one per window."""
        model.eval()
        rows = self.dev[1].rows
        sizes = np.full(len(rows), self.pad_to) if self.pad_to else rows.lengths()
        ends = np.cumsum(sizes)
        found = np.zeros((2, int(ends[-1])), dtype=np.float32)
        for batch in mine(by_length(rows, self.pad_to)):
            packed = pack(rows, batch, self.pad_to).to(device)
            with autocast(device, precision):
                logits = self.logits(model, packed).cpu().numpy()
            for place, row in enumerate(batch):
                found[:, ends[row] - sizes[row] : ends[row]] = logits[:, place, : sizes[row]]
        start, end = (np.split(logits, ends[:-1]) for logits in total_array(found))
        return start, end

    def evaluate(
        self, model: nn.Module, device: torch.device, precision: str, folder: Path, prefix: str
    ) -> dict:
        """F1 and exact match in percent; answers, n-best lists and (v2.0) no-answer odds go to `folder`."""
        examples, windows = self.dev
        o = self.options
        predictions, nbest, odds = squad_answers.best_answers(
            examples,
            windows,
            *self.predict(model, device, precision),
            o.n_best_size,
            o.max_answer_length,
            o.v2,
            o.null_score_diff_threshold,
            o.verbose,
        )
        if distributed.first():
            squad_answers.write_predictions(
                folder, prefix, predictions, nbest, odds if o.v2 else None
            )
        return squad_answers.squad_metrics(
            examples, predictions, o.v2, odds if o.v2 else None, o.null_score_diff_threshold
        )
