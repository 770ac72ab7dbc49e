"""Batches of random tokens for every task, as this project and as Hugging Face's models take them; they need no files."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from transformers import BertConfig

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
import plain  # noqa: E402

from utils import glue_data, masks, models  # noqa: E402
from utils.glue import GlueTask  # noqa: E402
from utils.mlm import MlmTask  # noqa: E402
from utils.rows import Rows  # noqa: E402
from utils.squad import AnswerOptions, SquadTask  # noqa: E402

# task, rows in a batch, length that they are padded to, mean length (None: all rows are full)
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
    """What MLM asks of a tokenizer."""

    cls_token_id, sep_token_id, mask_token_id, pad_token_id = CLS, SEP, MASK, PAD

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size


class Blocks:
    """Rows of one length, as MLM takes them."""

    def __init__(self, rows: Rows):
        self.rows = rows

    def gather(self, numbers: np.ndarray) -> Rows:
        """These rows."""
        ids, types = (
            array.reshape(len(self.rows), -1)[numbers] for array in (self.rows.ids, self.rows.types)
        )
        return Rows(ids.ravel(), types.ravel(), np.arange(len(numbers) + 1) * ids.shape[1])


class Case:
    """One kind of batch: its task with random data, and the same batches padded, as transformers takes them."""

    def __init__(self, name: str, config: BertConfig):
        self.kind, self.size, self.length, mean = CASES[name]
        self.config, draw = config, np.random.default_rng(SEED)
        lengths = np.full(self.size * BATCHES, self.length)
        if mean is not None:
            lengths = draw.gamma(4, mean / 4, len(lengths)).astype(np.int64).clip(4, self.length)
        ids = [[CLS, *draw.integers(999, config.vocab_size, n - 2).tolist(), SEP] for n in lengths]
        self.rows = Rows.from_lists(ids, [[0] * n for n in lengths])
        self.labels = draw.integers(0, 2, len(lengths))
        self.task = getattr(self, f"_{self.kind}")()

    def _glue(self) -> GlueTask:
        task = GlueTask(glue_data.find_spec("cola"))
        task.train = self.rows, self.labels
        return task

    def _squad(self) -> SquadTask:
        task = SquadTask(AnswerOptions())
        task.train = SimpleNamespace(rows=self.rows, start=self.labels + 5, end=self.labels + 9)
        return task

    def _mlm(self) -> MlmTask:
        task = MlmTask(Tokens(self.config.vocab_size))
        task.train = Blocks(self.rows)
        return task

    def taken(self, number: int) -> np.ndarray:
        """Row numbers of batch `number`."""
        return np.arange(self.size) + self.size * (number % BATCHES)

    def model(self, attention: str) -> torch.nn.Module:
        """The task's model under a mask of ones."""
        self.config._attn_implementation = attention
        model = models.load_model(self.task.model_class, None, self.config, SEED, "rand")
        masks.attach(model)
        return model

    def padded(self, number: int) -> dict[str, torch.Tensor]:
        """Batch `number` as a Hugging Face model takes it."""
        rows = self.taken(number)
        if self.kind == "glue":
            return plain.glue_batch(self.task.train, rows, self.length)
        if self.kind == "squad":
            return plain.squad_batch(self.task.train, rows, self.length)
        batch = plain.padded(self.rows, rows, self.length)
        chosen = (
            torch.rand(batch["input_ids"].shape, generator=torch.Generator().manual_seed(number))
            < 0.15
        )
        return {**batch, "labels": torch.where(chosen, batch["input_ids"], -100)}

    def flops(self) -> float:
        """Floating-point operations that a mean step needs: forward and backward over the real tokens."""
        c, lengths = self.config, self.rows.lengths()
        matrices = c.num_hidden_layers * (
            4 * c.hidden_size**2 + 2 * c.hidden_size * c.intermediate_size
        )
        needed = (
            6 * matrices * lengths.sum()
            + 12 * c.num_hidden_layers * c.hidden_size * (lengths**2).sum()
        )
        if self.kind == "mlm":
            needed += 6 * 0.15 * lengths.sum() * c.hidden_size * (c.vocab_size + c.hidden_size)
        return float(needed) / BATCHES
