"""Masked language modelling: masking, batches, loss and evaluation."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertTokenizer

from utils.config import ModelConfig, OutputConfig, TextConfig, TrainingConfig
from utils.data import hub
from utils.data.rows import EVALUATION_TOKENS, Rows, content_digest, warn_of_unknown
from utils.data.seeds import derive_seed
from utils.data.text import Blocks, Text, load_blocks
from utils.modeling import bert
from utils.modeling.attention import encode
from utils.modeling.bert import BertTaskModel, MaskedLanguageModel
from utils.modeling.packing import Batch, pack, send
from utils.modeling.runtime import Runtime
from utils.tasks.base import Task, input_file, tokenizer_and_config

EVALUATION_SEED = 20  # every run evaluates on the same masks
PREDICTED_MULTIPLE = 128  # of tokens that a bucketed batch predicts
IGNORED = -100  # a target that torch's cross-entropy ignores


@dataclass
class MaskedTokens:
    """T tokens, K of them masked.

    inputs: int64 [T], what the model sees; positions: int64 [K], ascending, indices in T of the
    tokens to predict; targets: int64 [K], these tokens; rows: int64 [K] on the CPU, their rows.
    """

    inputs: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    rows: np.ndarray


@dataclass(frozen=True)
class Masking:
    """BERT's masking (Devlin et al. 2019, section 3.1).

    Each token that is not special is chosen with `probability`. Of the chosen, 80 % become
    `mask_id`, 10 % a WordPiece drawn from all `vocab_size`, and 10 % stay.
    """

    mask_id: int
    special_ids: tuple[int, ...]
    vocab_size: int
    probability: float = 0.15

    def draw(
        self, ids: np.ndarray, row_of: np.ndarray, seed: int, device: torch.device
    ) -> MaskedTokens:
        """Mask the tokens `ids`, int64 [T], of the rows `row_of`, int64 [T], ascending from 0.

        The CPU draws how many tokens of a row are chosen (binomially), `device` draws which. The
        result is distributed as one draw per token, but no size has to be copied from the GPU.
        """
        generator = torch.Generator(device).manual_seed(seed)
        special = np.isin(ids, self.special_ids)
        candidates = np.bincount(row_of, weights=~special).astype(np.int64)
        counts = np.random.default_rng(seed).binomial(candidates, self.probability)
        # sorts by row; within a row, shuffles the candidates and puts the special tokens last
        draw = torch.rand(len(ids), generator=generator, device=device, dtype=torch.float64)
        order = (draw / 2 + send(torch.from_numpy(row_of + 0.5 * special), device)).argsort()
        rank = np.arange(len(ids)) - np.searchsorted(row_of, row_of)
        chosen = np.flatnonzero(rank < counts[row_of])
        positions = order[send(torch.from_numpy(chosen), device)].sort().values
        tokens = send(torch.from_numpy(ids.astype(np.int64)), device)
        targets = tokens[positions]
        kind = torch.rand(len(chosen), generator=generator, device=device)
        drawn = torch.randint(self.vocab_size, (len(chosen),), generator=generator, device=device)
        shown = torch.where(kind < 0.8, self.mask_id, torch.where(kind < 0.9, drawn, targets))
        inputs = tokens.index_copy(0, positions, shown)
        return MaskedTokens(inputs, positions, targets, row_of[chosen])


@dataclass
class MlmBatch(Batch):
    """Packed rows with K masked tokens to predict; `total` counts them over all processes.

    positions: int64 [K], their indices among the T tokens; targets: int64 [K], the tokens;
    blocks: int64 [K], their blocks in the development set (evaluation only).
    """

    positions: torch.Tensor
    targets: torch.Tensor
    blocks: torch.Tensor | None = None

    @classmethod
    def join(
        cls, blocks: Rows, masked: list[MaskedTokens], numbers: range, device: torch.device
    ) -> Self:
        """Return the batch of blocks that are masked one by one; `numbers` identify them."""
        packed = pack(blocks, np.arange(len(blocks)))
        packed.ids = torch.cat([each.inputs for each in masked])[None]
        starts = zip(masked, packed.first, strict=True)
        positions = torch.cat([each.positions + first for each, first in starts])
        targets = torch.cat([each.targets for each in masked])
        counts = torch.tensor([len(each.targets) for each in masked])
        block_of = torch.tensor(numbers).repeat_interleave(counts)
        tensors = (send(each, device) for each in (positions, targets, block_of))
        return cls(packed.to(device), len(targets), *tensors)

    def bucketed(self) -> Self:
        """Return the same batch in one of few shapes: K is padded with targets that are ignored."""
        padding = -len(self.positions) % PREDICTED_MULTIPLE
        positions = F.pad(self.positions, (0, padding))
        targets = F.pad(self.targets, (0, padding), value=IGNORED)
        total = torch.full((), float(self.total), dtype=torch.float32, device=positions.device)
        packed = self.packed.bucketed()
        return replace(self, packed=packed, total=total, positions=positions, targets=targets)


@dataclass
class MlmTask(Task):
    """MLM on a text. `train` or `dev` is None if the run does not need it."""

    tokenizer: BertTokenizer
    bert_config: BertConfig
    probability: float = 0.15
    train: Blocks | None = None
    dev: Blocks | None = None

    name, score_key = "mlm", "accuracy"
    model_class = MaskedLanguageModel

    def __post_init__(self) -> None:
        words = self.tokenizer
        special = (words.cls_token_id, words.sep_token_id, words.pad_token_id)
        self.masking = Masking(words.mask_token_id, special, len(words), self.probability)

    @classmethod
    def load(
        cls, data: TextConfig, model: ModelConfig, training: TrainingConfig, output: OutputConfig
    ) -> Self:
        """Load tokenizer, configuration and the texts needed. Raises UserError."""
        train_file = input_file(training, "do_train", data, "train_data_file")
        eval_file = input_file(training, "do_eval", data, "eval_data_file")
        tokenizer, config = tokenizer_and_config(model, None)
        longest = min(512, config.max_position_embeddings)
        size = longest if data.block_size is None else data.block_size
        bert.check_length(config, "--block_size", size)

        splits = {} if data.from_files else hub.load_text(data, model.cache_dir)

        def read(file: Path | None, split: str, count: int | None) -> Blocks:
            options = (tokenizer, data.line_by_line, data.threads)
            text = Text(file, *options) if file else hub.HubText.of(splits[split], *options)
            blocks = load_blocks(text, size, model.cache_dir, output.overwrite_cache)
            warn_of_unknown(text.name, tokenizer, blocks.ids)
            return blocks.first(count)

        train = read(train_file, "train", data.max_train_samples) if training.do_train else None
        dev = read(eval_file, "validation", data.max_eval_samples) if training.do_eval else None
        return cls(tokenizer, config, data.mlm_probability, train, dev)

    @property
    def train_rows(self) -> int:
        """Number of training blocks."""
        return len(self._train)

    def data_digest(self) -> str:
        """Identify the training data: number, first and last of the blocks, and all WordPieces."""
        ends = self._train.gather(np.array([0, self.train_rows - 1]))  # all that early versions had
        return f"{self.train_rows} {content_digest(ends.ids)} {self._train.digest}"

    @property
    def dev_rows(self) -> int:
        """Number of blocks of the development set."""
        return len(self.dev) if self.dev else 0

    def dev_digest(self) -> str:
        """Identify the development set, "" without evaluation."""
        return f"{len(self.dev)} {self.dev.digest}" if self.dev else ""

    def row_lengths(self, rows: np.ndarray) -> np.ndarray | None:
        """Return None: a batch is masked, and its loss computed, as a whole."""
        return None

    def train_batch(self, rows: np.ndarray, seed: int, runtime: Runtime) -> MlmBatch:
        """Return this process's share of the batch of blocks `rows`, masked by `seed`.

        The whole batch is masked, so that the draws do not depend on the number of processes.
        """
        blocks = self._train.gather(np.sort(rows))
        row_of = np.repeat(np.arange(len(blocks)), blocks.lengths())
        masked = self.masking.draw(blocks.ids, row_of, seed, runtime.device)
        own_rows, divisor = runtime.share_of_batch(np.arange(len(blocks)))
        own = np.isin(row_of, own_rows)
        number = np.cumsum(own) - 1  # of a token among the own tokens
        picks = (np.flatnonzero(own), number, np.flatnonzero(np.isin(masked.rows, own_rows)))
        tokens, numbers, kept = (send(torch.from_numpy(each), runtime.device) for each in picks)
        packed = pack(blocks, own_rows).to(runtime.device)
        packed.ids = masked.inputs[None, tokens]
        total = divisor if math.isinf(divisor) else max(1, len(masked.targets))
        return MlmBatch(packed, total, numbers[masked.positions[kept]], masked.targets[kept])

    def logits(self, model: BertTaskModel, batch: MlmBatch) -> torch.Tensor:
        """Return the scores of every WordPiece at the masked tokens, [K, vocabulary]."""
        assert isinstance(model, MaskedLanguageModel)
        return model.cls(encode(model.bert, batch.packed).index_select(0, batch.positions))

    def loss(self, model: BertTaskModel, batch: MlmBatch) -> torch.Tensor:
        """Return the mean cross-entropy over the masked tokens of the batch, a tensor []."""
        logits = self.logits(model, batch).float()
        return F.cross_entropy(logits, batch.targets, reduction="sum") / batch.total

    @torch.no_grad()
    def evaluate(
        self, model: BertTaskModel, runtime: Runtime, output: Path, step: int | None
    ) -> dict[str, float]:
        """Return accuracy and perplexity (exp of the mean cross-entropy) over the masked tokens."""
        model.eval()
        assert self.dev is not None, "loaded without do_eval"
        sums = torch.zeros(2, dtype=torch.float64, device=runtime.device)
        of_block = torch.zeros(2, len(self.dev), dtype=torch.float64, device=runtime.device)
        counts = torch.zeros(2, dtype=torch.float64)
        for batch in self._evaluation_batches(runtime, step):
            with runtime.autocast():
                logits = self.logits(model, batch).float()
            masked = max(1, len(batch.targets))
            weight, loss_weight = self._weights(batch)
            correct = logits.argmax(-1) == batch.targets
            assert batch.blocks is not None
            of_block.index_add_(1, batch.blocks, torch.stack([correct, correct | True]).double())
            hits = correct.sum() * weight / masked
            loss = F.cross_entropy(logits, batch.targets, reduction="sum") * (loss_weight / masked)
            sums += torch.stack([hits, loss]).double()
            counts += torch.tensor([weight, loss_weight])
        total = runtime.sum(torch.cat([sums, counts.to(runtime.device), of_block.flatten()]))
        accuracy, loss = (total[:2] / total[2:4].clamp(min=1)).tolist()
        correct, masked = total[4:].view(2, -1).cpu().numpy()
        self.save_outcomes(runtime, output, step, accuracy=correct, weights=masked)
        return {"accuracy": accuracy, "perplexity": math.exp(min(700.0, loss))}

    def _evaluation_batches(self, runtime: Runtime, step: int | None) -> Iterator[MlmBatch]:
        """Each block is masked on the CPU by its own seed, the same in all batches."""
        assert self.dev is not None, "loaded without do_eval"
        size = self._evaluation_batch_blocks(self.dev.block_size)
        cpu = torch.device("cpu")
        for begin in runtime.share(range(0, len(self.dev), size)):
            numbers = range(begin, min(begin + size, len(self.dev)))
            blocks = self.dev.gather(np.array(numbers))
            masked = []
            for row, number in enumerate(numbers):
                ids, _ = blocks[row]
                seed = self._evaluation_seed(step, number)
                masked.append(self.masking.draw(ids, np.zeros(len(ids), np.int64), seed, cpu))
            yield MlmBatch.join(blocks, masked, numbers, runtime.device)

    def _evaluation_batch_blocks(self, block_size: int) -> int:
        return max(1, EVALUATION_TOKENS // block_size)

    def _evaluation_seed(self, step: int | None, block: int) -> int:
        return derive_seed(EVALUATION_SEED, 0, block)  # the same masks at every step

    def _weights(self, batch: MlmBatch) -> tuple[int, int]:
        """Weights of the batch's accuracy and mean loss in the means: its masked tokens."""
        return len(batch.targets), len(batch.targets)

    @property
    def _train(self) -> Blocks:
        assert self.train is not None, "loaded without do_train"
        return self.train
