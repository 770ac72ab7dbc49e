"""The baseline: rows padded to one length, torch's prune and AdamW, a simple loop.

It does what the paper's released code does, for today's torch and transformers, without
optimizations.
"""

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils import prune
from transformers import BertForSequenceClassification

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils.data import glue
from utils.data.rows import LabelledRows, Rows
from utils.modeling import bert
from utils.modeling.runtime import Runtime

INPUTS = ("input_ids", "token_type_ids", "attention_mask")


def make_rows(ids: list[list[int]], types: list[list[int]]) -> Rows:
    """Return rows from one list of ids and one list of token types per row."""
    flat_ids, flat_types = np.concatenate(ids), np.concatenate(types)
    starts = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    return Rows(flat_ids.astype(np.int32), flat_types.astype(np.uint8), starts)


def longest(rows: Rows, indices: np.ndarray) -> int:
    """Return the tokens of the longest of `rows[indices]`, to which a collator pads today."""
    return int(rows.lengths(indices).max())


def padded(rows: Rows, indices: np.ndarray, length: int) -> dict[str, torch.Tensor]:
    """Return `rows[indices]` as the model takes them: INPUTS, int64 [B, length]."""
    batch = {name: torch.zeros(len(indices), length, dtype=torch.int64) for name in INPUTS}
    for at, row in enumerate(indices):
        ids, types = rows[row]
        for name, values in zip(INPUTS, (ids, types, np.ones_like(ids)), strict=True):
            batch[name][at, : len(ids)] = torch.from_numpy(values.astype(np.int64))
    return batch


def useful_flops(config: Any, lengths: np.ndarray, training: bool = True) -> float:
    """Floating-point operations of BERT's encoder on rows of these lengths, attention included."""
    layer = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    attention = 2 * config.hidden_size * (lengths.astype(np.int64) ** 2).sum()
    forward = 2 * config.num_hidden_layers * (layer * lengths.sum() + attention)
    return float(forward * (3 if training else 1))


def glue_batch(train: LabelledRows, indices: np.ndarray, length: int) -> dict[str, torch.Tensor]:
    """Return padded rows with their labels."""
    labels = torch.from_numpy(train.labels[indices])
    return {**padded(train.rows, indices, length), "labels": labels}


def squad_batch(train: LabelledRows, indices: np.ndarray, length: int) -> dict[str, torch.Tensor]:
    """Return padded windows with the first and last token of their answers."""
    start, end = torch.from_numpy(train.labels[:, indices].astype(np.int64))
    positions = {"start_positions": start, "end_positions": end}
    return {**padded(train.rows, indices, length), **positions}


class Loop:
    """Trains a Hugging Face model: forward, backward, clip, AdamW."""

    def __init__(
        self, model: torch.nn.Module, learning_rate: float = 2e-5, precision: str = "fp32"
    ) -> None:
        self.model: Any = model
        self.runtime = Runtime(next(model.parameters()).device, precision)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=learning_rate, eps=1e-8, weight_decay=0.0
        )

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        """Take one optimizer step; return its loss."""
        self.model.train()
        with self.runtime.autocast():
            loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.model.zero_grad()
        return loss.item()


@torch.no_grad()
def evaluate(
    model: torch.nn.Module, rows: Rows, length: int | None, batch_size: int = 32
) -> np.ndarray:
    """Return the logits of every row; length None pads to the longest row of each batch."""
    model.eval()
    batches = np.split(np.arange(len(rows)), range(batch_size, len(rows), batch_size))
    return np.concatenate(
        [
            model(**padded(rows, batch, length or longest(rows, batch))).logits.float().numpy()
            for batch in batches
        ]
    )


def prunable(model: Any) -> list[tuple[torch.nn.Linear, str]]:
    """Return the matrices of encoder and pooler, as torch's prune takes them."""
    encoder = [m for m in model.bert.encoder.modules() if isinstance(m, torch.nn.Linear)]
    return [(module, "weight") for module in [*encoder, model.bert.pooler.dense]]


def prune_more(model: torch.nn.Module, sparsity: float, before: float = 0.0) -> None:
    """Prune from sparsity `before` to `sparsity`; torch takes the fraction of what is left."""
    amount = (sparsity - before) / (1 - before)
    prune.global_unstructured(prunable(model), prune.L1Unstructured, amount=amount)


def save_mask(model: torch.nn.Module, path: Path) -> None:
    """Save the masks as they are, in float32."""
    torch.save({key: value for key, value in model.state_dict().items() if "mask" in key}, path)


def load(folder: str, labels: int) -> BertForSequenceClassification:
    """Return the pre-trained model."""
    return BertForSequenceClassification.from_pretrained(folder, num_labels=labels)


def one_shot(args: argparse.Namespace) -> None:
    """Do what the released oneshot.py does."""
    model = load(args.model, 2)
    prune_more(model, args.rate)
    save_mask(model, args.out / "mask.pt")


def imp(args: argparse.Namespace) -> None:
    """Do what the released LT_glue.py does: train, evaluate, save, prune, rewind, in rounds."""
    spec = glue.find_spec(args.task)
    tokenizer = bert.load_tokenizer(args.tokenizer or args.model, True)
    train, dev = (
        glue.load(spec, args.data, split, tokenizer, args.length or 128)
        for split in ("train", "dev")
    )
    model = load(args.model, len(spec.classes))
    theta = copy.deepcopy(model.state_dict())
    order = np.random.default_rng(args.seed)
    for round_ in range(args.rounds):
        loop, permutation = Loop(model), order.permutation(len(train.rows))
        for step in range(args.steps):
            rows = permutation[step * 32 : step * 32 + 32]
            loop.step(glue_batch(train, rows, args.length or longest(train.rows, rows)))
        if args.evaluate:
            evaluate(model, dev.rows, args.length or None)
        prune_more(model, (round_ + 1) / 10, round_ / 10)
        folder = args.out / f"checkpoint-{round_}"
        folder.mkdir(parents=True)
        save_mask(model, folder / "mask.pt")
        torch.save(model, folder / "model.pt")
        state = model.state_dict()
        for name, value in theta.items():
            kept = f"{name}_orig" if f"{name}_orig" in state else name
            if name.startswith("bert."):
                state[kept].copy_(value)


def main() -> None:
    """Run one of the two released scripts' work."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("what", choices=["one_shot", "imp"])
    add("--model", required=True, help="folder of the pre-trained model")
    add("--tokenizer", help="folder of another vocabulary")
    add("--out", type=Path, required=True, help="folder for masks and models")
    add("--rate", type=float, default=0.5, help="one_shot: the sparsity")
    add("--task", help="imp: the GLUE task")
    add("--data", type=Path, help="imp: the task's folder")
    text = "imp: tokens of a padded row; 0: those of the longest row of its batch"
    add("--length", type=int, default=128, help=text)
    add("--rounds", type=int, default=10, help="imp: rounds")
    add("--steps", type=int, default=10, help="imp: steps of a round")
    add("--evaluate", action="store_true", help="imp: score every round")
    add("--seed", type=int, default=57, help="imp: seed of the order of the rows")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (one_shot if args.what == "one_shot" else imp)(args)


if __name__ == "__main__":
    main()
