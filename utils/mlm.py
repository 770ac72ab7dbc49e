"""Masked language modelling: its data, its model, its batches, its evaluation."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from utils import distributed
from utils.masking import mask_tokens, special_mask
from utils.metrics import SCORE
from utils.models import MaskedLanguageModel, encode
from utils.rows import Packed, Rows, pack, send
from utils.seeds import derive
from utils.text import Blocks
from utils.training import autocast

EVALUATION_SEED = 20  # the masks of the evaluation are the same in every run
EVALUATION_TOKENS = 8192  # in one evaluation batch


@dataclass
class MlmBatch:
    """Packed rows with tokens masked, and the K tokens to predict.

    places: int64 [K], their indices among the T tokens of the batch; targets: int64 [K], what stood there.
    """

    packed: Packed
    places: torch.Tensor
    targets: torch.Tensor
    total: float  # tokens to predict in the whole batch, over all processes

    def to(self, device: torch.device) -> "MlmBatch":
        """The batch on `device`."""
        return MlmBatch(self.packed.to(device), send(self.places, device), send(self.targets, device), self.total)


def _my_share(batch: MlmBatch, rows: Rows) -> MlmBatch:
    """This process's rows of a batch, masked as they are in the whole: the draws do not depend on the processes."""
    own, total = distributed.my_rows(np.arange(len(rows)))
    row_of = batch.packed.slots // batch.packed.width
    mine = torch.isin(row_of, torch.from_numpy(own))
    chosen = torch.zeros_like(mine).index_fill(0, batch.places, True)
    targets = torch.zeros_like(row_of).index_copy(0, batch.places, batch.targets)
    packed = pack(rows, own)
    packed.ids = batch.packed.ids[:, mine]
    places = torch.nonzero(chosen[mine]).flatten()
    return MlmBatch(packed, places, targets[mine][places], float("inf") if total == float("inf") else batch.total)


class MlmTask:
    """MLM on a text. `as_released`: new evaluation masks at each step, batch accuracies weighted by all tokens."""

    name, score_key, scale, model_class, columns = "mlm", SCORE["mlm"], 100.0, MaskedLanguageModel, None

    def __init__(self, tokenizer, probability: float = 0.15, as_released_batch: int | None = None):
        self.tokenizer, self.probability, self.as_released_batch = tokenizer, probability, as_released_batch
        self.train: Blocks | None = None
        self.dev: Blocks | None = None

    @property
    def train_rows(self) -> int:
        return len(self.train)

    def lengths(self, rows: np.ndarray) -> None:
        """A batch is masked, and its loss taken, as a whole."""
        return None

    def train_batch(self, rows: np.ndarray, place: tuple[int, ...], device: torch.device) -> MlmBatch:
        """The batch of these blocks, masked by a generator that `place` seeds: the same masks on every device."""
        gathered = self.train.gather(np.sort(rows))
        batch = self.masked(pack(gathered, np.arange(len(rows))), torch.Generator().manual_seed(derive(*place, 3)))
        return (batch if distributed.size() == 1 else _my_share(batch, gathered)).to(device)

    def masked(self, packed: Packed, generator: torch.Generator) -> MlmBatch:
        """Mask a packed batch: 15 % of its tokens, never special ones."""
        t = self.tokenizer
        special = special_mask(packed.ids, (t.cls_token_id, t.sep_token_id, t.pad_token_id))
        inputs, chosen = mask_tokens(packed.ids, ~special, t.mask_token_id, len(t), generator, self.probability)
        places = torch.nonzero(chosen[0]).flatten()
        targets = packed.ids[0, places]
        packed.ids = inputs
        return MlmBatch(packed, places, targets, len(places))

    def logits(self, model: nn.Module, batch: MlmBatch) -> torch.Tensor:
        """Scores of every WordPiece at the masked tokens alone, [K, vocabulary]."""
        return model.cls(encode(model.bert, batch.packed)[batch.places])

    def loss(self, model: nn.Module, batch: MlmBatch) -> torch.Tensor:
        """Mean cross-entropy over the masked tokens of the batch."""
        return F.cross_entropy(self.logits(model, batch).float(), batch.targets, reduction="sum") / max(1, batch.total)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, device: torch.device, precision: str, folder: Path, prefix: str) -> dict:
        """Accuracy over the masked tokens of the text, and perplexity (e to the mean cross-entropy)."""
        model.eval()
        sums, counts = torch.zeros(3, dtype=torch.float64, device=device), torch.zeros(2, dtype=torch.float64)
        for batch in self._dev_batches(device, int(prefix or 0) if self.as_released_batch else 0):
            with autocast(device, precision):
                logits = self.logits(model, batch).float()
            hits = (logits.argmax(-1) == batch.targets).sum()
            size = batch.packed.ids.numel()
            loss = F.cross_entropy(logits, batch.targets, reduction="sum")
            sums += torch.stack([v.double() for v in (hits, loss, hits * size / max(1, batch.total))])
            counts += torch.tensor([batch.total, size])
        right, loss, weighted = distributed.total(sums).tolist()
        masked, tokens = distributed.total(counts.to(device)).tolist()
        accuracy = weighted / tokens if self.as_released_batch else right / max(1, masked)
        return {"accuracy": accuracy, "perplexity": math.exp(min(700.0, loss / max(1, masked)))}

    def _dev_batches(self, device: torch.device, drawn_at: int):
        size = self.as_released_batch or max(1, EVALUATION_TOKENS // self.dev.block_size)
        for begin in distributed.mine(range(0, len(self.dev), size)):
            blocks = np.arange(begin, min(begin + size, len(self.dev)))
            rows = self.dev.gather(blocks)
            packed = pack(rows, np.arange(len(rows)))
            # each block's masks come from its own number: the same whatever the batches
            parts = [self._mask_block(rows[i][0], derive(EVALUATION_SEED, drawn_at, int(b))) for i, b in enumerate(blocks)]
            inputs, chosen = (torch.cat(column) for column in zip(*parts, strict=True))
            places = torch.nonzero(chosen).flatten()
            targets = packed.ids[0, places]
            packed.ids = inputs[None]
            yield MlmBatch(packed, places, targets, len(places)).to(device)

    def _mask_block(self, ids: np.ndarray, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        t, block = self.tokenizer, torch.from_numpy(ids.astype(np.int64))
        special = special_mask(block, (t.cls_token_id, t.sep_token_id, t.pad_token_id))
        generator = torch.Generator().manual_seed(seed)
        return mask_tokens(block, ~special, t.mask_token_id, len(t), generator, self.probability)
