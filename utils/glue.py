"""The GLUE tasks: their data, their model, their batches, their evaluation."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from utils import glue_data, metrics
from utils.distributed import mine, my_rows, total_array
from utils.models import SequenceClassifier, encode, pool
from utils.rows import Batch, Packed, Rows, by_length, checksum, pack, send
from utils.training import autocast


@dataclass
class GlueBatch(Batch):
    """Packed rows with their labels: int64 [B], or float32 [B] for STS-B. The total is the number of rows."""

    labels: torch.Tensor


class GlueTask:
    """One GLUE task read from its folder.

    `as_released_length`: pad every row to that length and let MNLI's mismatched result overwrite the matched one, as the
    released code did.
    """

    model_class, columns = SequenceClassifier, None
    scale = 100.0  # from metrics in 0..1 to percent points

    def __init__(self, spec: glue_data.GlueSpec, as_released_length: int | None = None):
        self.spec, self.name, self.score_key = spec, spec.name, metrics.SCORE[spec.name]
        self.pad_to = as_released_length
        self.train: tuple[Rows, np.ndarray] | None = None
        self.dev: dict[str, tuple[Rows, np.ndarray]] = {}

    @property
    def labels(self) -> int:
        """Outputs of the head: classes, or 1 for regression."""
        return 1 if self.spec.labels is None else len(self.spec.labels)

    def read(
        self, data_dir: Path, tokenizer, max_length: int, train: bool, dev: bool, **cache
    ) -> None:
        """Read the splits needed. Raises UserError naming file and row if one is malformed."""

        def load(split: str) -> tuple[Rows, np.ndarray]:
            return glue_data.load(self.spec, Path(data_dir), split, tokenizer, max_length, **cache)

        if train:
            self.train = load("train")
        if dev:
            self.dev = {split: load(split) for split in self.spec.files if split != "train"}

    @property
    def train_rows(self) -> int:
        return len(self.train[0])

    def data_checksum(self) -> str:
        """Tells the training data from others'."""
        rows, labels = self.train
        return checksum(rows.starts, rows.ids, labels)

    def lengths(self, rows: np.ndarray) -> np.ndarray | None:
        """Tokens of these training rows, int64 [B]; None as released: such a batch goes through the model as a whole."""
        return None if self.pad_to else self.train[0].lengths(rows)

    def train_batch(
        self, rows: np.ndarray, place: tuple[int, ...], device: torch.device
    ) -> GlueBatch:
        """The batch of these training rows; nothing in it is random, so `place` is not used."""
        features, labels = self.train
        own, total = my_rows(rows)
        return GlueBatch(
            pack(features, own, self.pad_to).to(device),
            total,
            send(torch.from_numpy(labels[own]), device),
        )

    def logits(self, model: nn.Module, packed: Packed) -> torch.Tensor:
        """[B, labels]"""
        pooled = pool(model.bert, encode(model.bert, packed), packed.first)
        return model.classifier(model.dropout(pooled))

    def loss(self, model: nn.Module, batch: GlueBatch) -> torch.Tensor:
        """Mean cross-entropy, or mean squared error for STS-B."""
        logits = self.logits(model, batch.packed).float()
        if self.spec.labels is None:
            return F.mse_loss(logits.view(-1), batch.labels.float(), reduction="sum") / batch.total
        return F.cross_entropy(logits, batch.labels, reduction="sum") / batch.total

    @torch.no_grad()
    def predict(
        self, model: nn.Module, rows: Rows, device: torch.device, precision: str = "fp32"
    ) -> np.ndarray:
        """Logits of every row, in the rows' order, float32 [n, labels]."""
        model.eval()
        found = np.zeros((len(rows), self.labels), dtype=np.float32)
        for batch in mine(by_length(rows, self.pad_to)):
            with autocast(device, precision):
                logits = self.logits(model, pack(rows, batch, self.pad_to).to(device))
            found[batch] = logits.float().cpu().numpy()
        return total_array(found)

    def evaluate(
        self, model: nn.Module, device: torch.device, precision: str, folder: Path, prefix: str
    ) -> dict:
        """The metrics on the development set; MNLI's mismatched ones carry the suffix `_mm`."""
        results = {}
        for split, (rows, labels) in self.dev.items():
            logits = self.predict(model, rows, device, precision)
            predictions = logits[:, 0] if self.spec.labels is None else logits.argmax(1)
            found = metrics.glue_metrics(self.name, predictions, labels)
            suffix = (
                "_mm"
                if self.name == "mnli" and split == "dev_mismatched" and not self.pad_to
                else ""
            )
            results |= {f"{key}{suffix}": value for key, value in found.items()}
        return results
