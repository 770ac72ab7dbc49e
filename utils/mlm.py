"""Masked language modelling: its data, its model, its batches, its evaluation."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from utils import distributed
from utils.masking import Masked, mask_tokens, special_mask
from utils.metrics import SCORE
from utils.models import MaskedLanguageModel, encode
from utils.rows import EVALUATION_TOKENS, Batch, Rows, checksum, pack, send
from utils.seeds import derive
from utils.text import Blocks
from utils.training import autocast

CPU = torch.device("cpu")
EVALUATION_SEED = 20  # the masks of the evaluation are the same in every run
EVEN_PREDICTED = 128  # where batches are to have few shapes, the numbers of tokens to predict are multiples of it
IGNORED = -100  # a target that torch's cross-entropy leaves out


@dataclass
class MlmBatch(Batch):
    """Packed rows with tokens masked, and the K tokens to predict. The total is the number of these.

    places: int64 [K], their indices among the T tokens of the batch; targets: int64 [K], what stood there.
    """

    places: torch.Tensor
    targets: torch.Tensor

    def to(self, device: torch.device) -> "MlmBatch":
        """The batch on `device`."""
        return MlmBatch(
            self.packed.to(device),
            self.total,
            send(self.places, device),
            send(self.targets, device),
        )

    def evened(self) -> "MlmBatch":
        """The same batch in one of few shapes: K a multiple of EVEN_PREDICTED, by targets that count for nothing."""
        filler = -len(self.places) % EVEN_PREDICTED
        return MlmBatch(
            self.packed.evened(),
            torch.full((), self.total, dtype=torch.float32, device=self.places.device),
            F.pad(self.places, (0, filler)),
            F.pad(self.targets, (0, filler), value=IGNORED),
        )


def _my_share(found: Masked, row_of: np.ndarray, rows: Rows, device: torch.device) -> MlmBatch:
    """This process's rows of a batch, masked as they are in the whole: the draws do not depend on the processes."""
    own, total = distributed.my_rows(np.arange(len(rows)))
    packed = pack(rows, own)
    shift = np.zeros(
        len(rows), np.int64
    )  # how much further left a row begins among those of this process
    shift[own] = rows.starts[own] - packed.first.numpy()
    tokens, chosen = (np.flatnonzero(np.isin(of, own)) for of in (row_of, found.rows))
    left = send(torch.from_numpy(shift[found.rows[chosen]]), device)
    tokens, chosen = (send(torch.from_numpy(numbers), device) for numbers in (tokens, chosen))
    packed = packed.to(device)
    packed.ids = found.inputs[None, tokens]
    total = total if math.isinf(total) else max(1, len(found.targets))
    return MlmBatch(packed, total, found.places[chosen] - left, found.targets[chosen])


class MlmTask:
    """MLM on a text. `as_released`: new evaluation masks at each step, batch accuracies weighted by all tokens."""

    name, score_key, scale, model_class, columns = (
        "mlm",
        SCORE["mlm"],
        100.0,
        MaskedLanguageModel,
        None,
    )

    def __init__(self, tokenizer, probability: float = 0.15, as_released_batch: int | None = None):
        self.tokenizer, self.probability, self.as_released_batch = (
            tokenizer,
            probability,
            as_released_batch,
        )
        self.train: Blocks | None = None
        self.dev: Blocks | None = None

    @property
    def train_rows(self) -> int:
        return len(self.train)

    def data_checksum(self) -> str:
        """Tells the training data from others': by how many blocks there are, and the first and last of them."""
        ends = self.train.gather(np.array([0, len(self.train) - 1]))
        return f"{len(self.train)} {checksum(ends.ids)}"

    def lengths(self, rows: np.ndarray) -> None:
        """A batch is masked, and its loss taken, as a whole."""
        return None

    def train_batch(
        self, rows: np.ndarray, place: tuple[int, ...], device: torch.device
    ) -> MlmBatch:
        """The batch of these blocks, masked on `device` by a generator that `place` seeds."""
        gathered = self.train.gather(np.sort(rows))
        row_of = np.repeat(np.arange(len(gathered)), gathered.lengths())
        found = self._mask(gathered.ids, row_of, derive(*place, 3), device)
        if distributed.size() > 1:
            return _my_share(found, row_of, gathered, device)
        packed = pack(gathered, np.arange(len(gathered))).to(device)
        packed.ids = found.inputs[None]
        return MlmBatch(packed, max(1, len(found.targets)), found.places, found.targets)

    def _mask(self, ids: np.ndarray, row_of: np.ndarray, seed: int, device: torch.device) -> Masked:
        """Mask 15 % of these tokens on `device`, never special ones."""
        ids = torch.from_numpy(ids.astype(np.int64))
        t = self.tokenizer
        maskable = ~special_mask(ids, (t.cls_token_id, t.sep_token_id, t.pad_token_id))
        return mask_tokens(
            ids, maskable, row_of, t.mask_token_id, len(t), seed, device, self.probability
        )

    def logits(self, model: nn.Module, batch: MlmBatch) -> torch.Tensor:
        """Scores of every WordPiece at the masked tokens alone, [K, vocabulary]."""
        return model.cls(encode(model.bert, batch.packed).index_select(0, batch.places))

    def loss(self, model: nn.Module, batch: MlmBatch) -> torch.Tensor:
        """Mean cross-entropy over the masked tokens of the batch."""
        return (
            F.cross_entropy(self.logits(model, batch).float(), batch.targets, reduction="sum")
            / batch.total
        )

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, device: torch.device, precision: str, folder: Path, prefix: str
    ) -> dict:
        """Accuracy over the masked tokens of the text, and perplexity (e to the mean cross-entropy)."""
        model.eval()
        sums, counts = (
            torch.zeros(3, dtype=torch.float64, device=device),
            torch.zeros(2, dtype=torch.float64),
        )
        for batch in self._dev_batches(device, int(prefix or 0) if self.as_released_batch else 0):
            with autocast(device, precision):
                logits = self.logits(model, batch).float()
            hits = (logits.argmax(-1) == batch.targets).sum()
            size = batch.packed.ids.numel()
            loss = F.cross_entropy(logits, batch.targets, reduction="sum")
            sums += torch.stack(
                [v.double() for v in (hits, loss, hits * size / max(1, batch.total))]
            )
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
            # each block's masks come from its own number: the same whatever the batches, drawn on the CPU: on every machine
            parts = [
                self._mask(
                    rows[i][0],
                    np.zeros(len(rows[i][0]), np.int64),
                    derive(EVALUATION_SEED, drawn_at, int(b)),
                    CPU,
                )
                for i, b in enumerate(blocks)
            ]
            packed.ids = torch.cat([part.inputs for part in parts])[None]
            places = torch.cat(
                [
                    part.places + int(start)
                    for part, start in zip(parts, rows.starts[:-1], strict=True)
                ]
            )
            targets = torch.cat([part.targets for part in parts])
            yield MlmBatch(packed, len(targets), places, targets).to(device)
