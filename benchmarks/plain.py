"""The plain way, which every figure is measured against: rows padded to one length, torch's prune and AdamW, a plain loop.

It does what the paper's released code does, written for today's torch and transformers, with nothing made fast.
"""

import argparse
import copy
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils import prune
from transformers import BertForSequenceClassification

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils import glue_data, models  # noqa: E402 - the data only: rows and labels are the same for both ways
from utils.rows import Rows  # noqa: E402
from utils.training import autocast  # noqa: E402


def padded(rows: Rows, indices: np.ndarray, length: int) -> dict[str, torch.Tensor]:
    """The rows as the model takes them: input_ids, token_type_ids, attention_mask, int64 [B, length]."""
    names = ("input_ids", "token_type_ids", "attention_mask")
    batch = {name: torch.zeros(len(indices), length, dtype=torch.int64) for name in names}
    for place, row in enumerate(indices):
        ids, types = rows[row]
        for name, values in zip(names, (ids, types, np.ones_like(ids)), strict=True):
            batch[name][place, : len(ids)] = torch.from_numpy(values.astype(np.int64))
    return batch


def glue_batch(
    train: tuple[Rows, np.ndarray], indices: np.ndarray, length: int
) -> dict[str, torch.Tensor]:
    """Padded rows with their labels."""
    return {**padded(train[0], indices, length), "labels": torch.from_numpy(train[1][indices])}


def squad_batch(windows, indices: np.ndarray, length: int) -> dict[str, torch.Tensor]:
    """Padded windows with the places where their answers start and end."""
    places = {
        f"{end}_positions": getattr(windows, end)[indices].astype(np.int64)
        for end in ("start", "end")
    }
    return {
        **padded(windows.rows, indices, length),
        **{name: torch.from_numpy(place) for name, place in places.items()},
    }


class Loop:
    """A Hugging Face model in training: forward, backward, clip, AdamW; `precision` "bf16": under autocast."""

    def __init__(self, model: torch.nn.Module, rate: float = 2e-5, precision: str = "fp32"):
        self.model, self.precision = model, precision
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=rate, eps=1e-8, weight_decay=0.0)

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        """One optimizer step; its loss."""
        self.model.train()
        with autocast(self.model.device, self.precision):
            loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.model.zero_grad()
        return loss.item()


@torch.no_grad()
def evaluate(model: torch.nn.Module, rows: Rows, length: int, batch_size: int = 32) -> np.ndarray:
    """Logits of every row."""
    model.eval()
    parts = np.split(np.arange(len(rows)), range(batch_size, len(rows), batch_size))
    return np.concatenate([model(**padded(rows, part, length)).logits.numpy() for part in parts])


def prunable(model: torch.nn.Module) -> list[tuple[torch.nn.Linear, str]]:
    """The matrices of encoder and pooler, as torch's prune takes them."""
    found = [m for m in model.bert.encoder.modules() if isinstance(m, torch.nn.Linear)]
    return [(module, "weight") for module in [*found, model.bert.pooler.dense]]


def prune_more(model: torch.nn.Module, sparsity: float, before: float = 0.0) -> None:
    """Prune from sparsity `before` to `sparsity`; torch takes the fraction of what is left."""
    prune.global_unstructured(
        prunable(model), prune.L1Unstructured, amount=(sparsity - before) / (1 - before)
    )


def save_mask(model: torch.nn.Module, path: Path) -> None:
    """The masks as they are, in float32."""
    torch.save({key: value for key, value in model.state_dict().items() if "mask" in key}, path)


def load(folder: str, labels: int) -> BertForSequenceClassification:
    """The pre-trained model."""
    return BertForSequenceClassification.from_pretrained(folder, num_labels=labels)


def one_shot(args: argparse.Namespace) -> None:
    """What the released oneshot.py does."""
    model = load(args.model, 2)
    prune_more(model, args.rate)
    save_mask(model, args.out / "mask.pt")


def imp(args: argparse.Namespace) -> None:
    """What the released LT_glue.py does: rounds of training, evaluation, saving, pruning, rewinding."""
    task, tokenizer = (
        glue_data.find_spec(args.task),
        models.load_tokenizer(args.tokenizer or args.model, True),
    )
    train, dev = (
        glue_data.load(task, args.data, split, tokenizer, args.length, args.cache)
        for split in ("train", "dev")
    )
    model = load(args.model, len(task.labels or "1"))
    theta = copy.deepcopy(model.state_dict())
    order = np.random.default_rng(args.seed)
    for round_ in range(args.rounds):
        loop, permutation = Loop(model), order.permutation(len(train[0]))
        for step in range(args.steps):
            loop.step(glue_batch(train, permutation[step * 32 : step * 32 + 32], args.length))
        if args.evaluate:
            evaluate(model, dev[0], args.length)
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["one_shot", "imp"])
    parser.add_argument("--model", required=True, help="folder of the pre-trained model")
    parser.add_argument("--tokenizer", help="folder of another vocabulary")
    parser.add_argument("--out", type=Path, required=True, help="folder for masks and models")
    parser.add_argument("--rate", type=float, default=0.5, help="one_shot: the sparsity")
    parser.add_argument("--task", help="imp: the GLUE task")
    parser.add_argument("--data", type=Path, help="imp: the task's folder")
    parser.add_argument("--cache", type=Path, help="imp: folder of the feature caches")
    parser.add_argument(
        "--length", type=int, default=128, help="imp: tokens that rows are padded to"
    )
    parser.add_argument("--rounds", type=int, default=10, help="imp: rounds")
    parser.add_argument("--steps", type=int, default=10, help="imp: steps of a round")
    parser.add_argument("--evaluate", action="store_true", help="imp: score every round")
    parser.add_argument("--seed", type=int, default=57, help="imp: seed of the rows' order")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (one_shot if args.what == "one_shot" else imp)(args)


if __name__ == "__main__":
    main()
