"""Batches of random tokens for every task, for this project and for Hugging Face's models."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
import baseline  # noqa: E402

from utils.config import SquadConfig  # noqa: E402
from utils.data import glue  # noqa: E402
from utils.data.rows import LabelledRows  # noqa: E402
from utils.data.text import Blocks  # noqa: E402
from utils.modeling import bert  # noqa: E402
from utils.pruning import masks  # noqa: E402
from utils.tasks.glue import GlueTask  # noqa: E402
from utils.tasks.mlm import MlmTask  # noqa: E402
from utils.tasks.squad import SquadTask  # noqa: E402

# name -> task, rows in a batch, length of padded rows, mean length (None: all rows are full)
CASES = {
    "CoLA": ("glue", 32, 128, 11.3),
    "STS-B": ("glue", 32, 128, 27.8),
    "RTE": ("glue", 32, 128, 67.0),
    "32x128": ("glue", 32, 128, None),
    "squad 16x384": ("squad", 16, 384, None),
    "mlm 16x512": ("mlm", 16, 512, None),
}
BATCHES = 16  # different ones, in turn
CLS, SEP, MASK, PAD, SEED = 101, 102, 103, 0, 57


class Tokens:
    """The part of a tokenizer that MLM uses."""

    cls_token_id, sep_token_id, mask_token_id, pad_token_id = CLS, SEP, MASK, PAD

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


class Case:
    """One kind of batch: its task with random data, and the same batches padded."""

    def __init__(self, name: str, config: BertConfig) -> None:
        self.kind, self.size, self.length, mean = CASES[name]
        self.config, draw = config, np.random.default_rng(SEED)
        lengths = np.full(self.size * BATCHES, self.length)
        if mean is not None:
            drawn = draw.gamma(4, mean / 4, len(lengths))
            lengths = drawn.astype(np.int64).clip(4, self.length)
        ids = [[CLS, *draw.integers(999, config.vocab_size, n - 2).tolist(), SEP] for n in lengths]
        self.rows = baseline.make_rows(ids, [[0] * n for n in lengths])
        self.labels = draw.integers(0, 2, len(lengths))
        self.tokenizer: Any = Tokens(config.vocab_size)
        self.task: Any = getattr(self, f"_{self.kind}")()

    def _glue(self) -> GlueTask:
        train = LabelledRows(self.rows, self.labels)
        return GlueTask(glue.find_spec("cola"), self.tokenizer, self.config, train, {})

    def _squad(self) -> SquadTask:
        train = LabelledRows(self.rows, np.stack([self.labels + 5, self.labels + 9]))
        return SquadTask(SquadConfig(), self.tokenizer, self.config, train, None)

    def _mlm(self) -> MlmTask:
        words = self.rows.ids.reshape(len(self.rows), -1)[:, 1:-1].ravel()
        blocks = Blocks(words, None, self.length, CLS, SEP)
        return MlmTask(self.tokenizer, self.config, train=blocks)

    def row_numbers(self, number: int) -> np.ndarray:
        """Return the row numbers of batch `number`."""
        return np.arange(self.size) + self.size * (number % BATCHES)

    def model(self, attention: str) -> Any:
        """Return the task's model under a mask of ones."""
        self.config._attn_implementation = attention
        model = bert.load_model(self.task.model_class, None, self.config, SEED, "rand")
        masks.attach(model)
        return model

    def padded(self, number: int, longest: bool = False) -> dict[str, torch.Tensor]:
        """Return batch `number` as a Hugging Face model takes it; `longest`: padded to that row."""
        rows = self.row_numbers(number)
        if self.kind == "glue":
            length = baseline.longest(self.rows, rows) if longest else self.length
            return baseline.glue_batch(self.task.train, rows, length)
        if self.kind == "squad":
            return baseline.squad_batch(self.task.train, rows, self.length)
        batch = baseline.padded(self.rows, rows, self.length)
        generator = torch.Generator().manual_seed(number)
        chosen = torch.rand(batch["input_ids"].shape, generator=generator) < 0.15
        return {**batch, "labels": torch.where(chosen, batch["input_ids"], -100)}

    def flops(self) -> float:
        """Floating-point operations of a mean step: forward and backward over the real tokens."""
        c, lengths = self.config, self.rows.lengths()
        head = 0.0
        if self.kind == "mlm":
            head = 6 * 0.15 * lengths.sum() * c.hidden_size * (c.vocab_size + c.hidden_size)
        return float(baseline.useful_flops(c, lengths) + head) / BATCHES
