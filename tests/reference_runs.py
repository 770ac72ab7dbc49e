"""The reference outputs of the released code: find the runs, read them, and derive our command.

The format is described in the README beside the outputs. Nothing here imports the project.
"""

import functools
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import golden_archive
import numpy as np
import torch

UNPACKED = "LTH_UNPACKED"  # child processes find the folder in this variable
OWN = Path(os.environ.get(UNPACKED) or golden_archive.unpack())  # the outputs in tests/golden
os.environ[UNPACKED] = str(OWN)
GOLDEN = Path(os.environ.get("LTH_GOLDEN", OWN))
IGNORED = -100  # the label of a token that is not predicted

IMP_SCRIPTS = {"glue": "LT_glue.py", "squad": "squad_trans.py", "mlm": "LT_pretrain.py"}
TRAIN_SCRIPTS = {"glue": "glue_trans.py", "squad": "squad_trans.py", "mlm": "pretrain_trans.py"}
TRAINING = [
    "per_gpu_train_batch_size",
    "per_gpu_eval_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "weight_decay",
    "learning_rate",
    "adam_epsilon",
    "warmup_steps",
    "max_grad_norm",
    "logging_steps",
    "save_steps",
    "seed",
]
TASK_FLAGS = {
    "glue": ["task_name", "max_seq_length", "do_lower_case"],
    "squad": [
        "max_seq_length",
        "doc_stride",
        "max_query_length",
        "do_lower_case",
        "version_2_with_negative",
        "null_score_diff_threshold",
        "n_best_size",
        "max_answer_length",
    ],
    "mlm": ["mlm", "mlm_probability", "block_size", "line_by_line"],
}


def assets_of(root: Path) -> Path:
    """The folder of model and data: beside the runs, else the project's own."""
    return root / "assets" if (root / "assets").is_dir() else OWN / "assets"


def read_json(path: Path):
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_mask(path: Path) -> dict[str, torch.Tensor]:
    """A stored mask as bool tensors: `packbits` of each flattened matrix, with its shape."""
    packed, mask = np.load(path), {}
    for key in packed.files:
        if not key.endswith(".shape"):
            shape = packed[f"{key}.shape"]
            bits = np.unpackbits(packed[key])[: math.prod(shape)]
            mask[key] = torch.from_numpy(bits.astype(bool)).view(*shape)
    return mask


def write_mask(path: Path, mask: dict[str, torch.Tensor]) -> None:
    """The inverse of `read_mask`."""
    arrays = {key: np.packbits(value.numpy().ravel()) for key, value in mask.items()}
    np.savez(path, **arrays, **{f"{key}.shape": np.array(m.shape) for key, m in mask.items()})


def pruned(mask: dict[str, torch.Tensor]) -> int:
    """Number of weights that the mask drops."""
    return sum(int((~value).sum()) for value in mask.values())


def glue_folder(assets: Path, task: str) -> Path:
    """The folder of a GLUE task; names are compared without case."""
    wanted = task.lower().removesuffix("-mm")
    return next(path for path in (assets / "glue").iterdir() if path.name.lower() == wanted)


@dataclass(frozen=True)
class ReferenceRun:
    """One training run of the released code."""

    folder: Path
    assets: Path
    finds_tickets: bool  # IMP, else fine-tuning

    @functools.cached_property
    def record(self) -> dict:
        """run.json: steps, result_pt, args, and rounds for IMP."""
        return read_json(self.folder / "run.json")

    @property
    def steps(self) -> list[dict[str, float]]:
        """Loss, learning rate and gradient norm of every step."""
        return self.record["steps"]

    @property
    def args(self) -> dict[str, str]:
        """The arguments of the run, as text."""
        return self.record["args"]

    def number(self, name: str) -> float:
        """An argument as a number."""
        return float(self.args[name])

    @functools.cached_property
    def head(self) -> dict[str, np.ndarray]:
        """The initial values of the task head."""
        return dict(np.load(self.folder / "init_head.npz"))

    @functools.cached_property
    def order(self) -> list[np.ndarray]:
        """The row order of every epoch."""
        stored = np.load(self.folder / "order.npz")
        return [stored[f"epoch_{epoch}"] for epoch in range(len(stored.files))]

    @functools.cached_property
    def mlm_batches(self) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """MLM: masked ids and labels of every training batch, int64 [B, W] each; else None."""
        path = self.folder / "mlm_batches.npz"
        if not path.exists():
            return None
        stored = np.load(path)
        numbers = sorted(name.rpartition("_")[2] for name in stored.files if "input_ids" in name)
        return [(stored[f"input_ids_{n}"], stored[f"labels_{n}"]) for n in numbers]

    @property
    def kind(self) -> str:
        """glue, squad or mlm: the task head shows it."""
        heads = {"classifier": "glue", "qa_outputs": "squad", "cls": "mlm"}
        return heads[next(iter(self.head)).partition(".")[0]]

    @property
    def task(self) -> str:
        """The GLUE task in lower case, else squad or mlm."""
        fallback = self.folder.name.split("_")[1] if "_" in self.folder.name else ""
        return self.args.get("task_name", fallback).lower() if self.kind == "glue" else self.kind

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The metrics of every evaluation, in order."""
        return [entry for entry in self.record["result_pt"] if isinstance(entry, dict)]

    @property
    def sparsity(self) -> float | None:
        """The sparsity in percent that the released code printed, if it did."""
        return next((x for x in self.record["result_pt"] if not isinstance(x, dict)), None)

    @property
    def evaluation_steps(self) -> list[int]:
        """Steps behind each entry of `metrics`; the SQuAD counter starts at 1."""
        every, early = int(self.number("logging_steps")), self.kind == "squad"
        total = len(self.steps)
        during = range(every - early, total + 1, every) if every > 0 else ()
        found = [step for step in during if step > 0][: len(self.metrics)]
        return found + [total] * (len(self.metrics) - len(found))

    @functools.cached_property
    def state_sums(self) -> dict[str, tuple[float, float]]:
        """Sum and L2 norm of every tensor of the final state."""
        return read_json(self.folder / "final_state_sums.json")

    @property
    def masks(self) -> list[dict[str, torch.Tensor]]:
        """IMP: the masks in order."""
        return [read_mask(path) for path in sorted(self.folder.glob("mask_*.npz"))]

    @property
    def is_masked(self) -> bool:
        """Whether the final state has masks."""
        return any(name.endswith("_mask") for name in self.state_sums)

    def mask(self) -> dict[str, torch.Tensor] | None:
        """Fine-tuning: the mask that was trained, None for the dense model."""
        if not self.is_masked:
            return None
        rate = re.search(r"omp([0-9.]+)$", self.folder.name)
        rate = rate[1] if rate else f"{self.sparsity / 100:g}"
        roots = (self.folder.parent.parent, OWN)
        files = [self.folder / "mask.npz", *(root / "omp" / f"glue_{rate}.npz" for root in roots)]
        mask = read_mask(next(path for path in files if path.exists()))
        for key, value in mask.items():
            assert int(value.sum()) == round(self.state_sums[key][0]), f"{key}: another mask"
        return mask

    @property
    def script(self) -> str:
        """The script that does the same."""
        return (IMP_SCRIPTS if self.finds_tickets else TRAIN_SCRIPTS)[self.kind]

    def flags(self, work: Path) -> list[str]:
        """The script's flags without the mask; everything is written to `work`."""
        names = {
            "glue": {"--data_dir": ""},
            "squad": {"--train_file": "train-v1.1.json", "--predict_file": "dev-v1.1.json"},
            "mlm": {"--train_data_file": "en.train", "--eval_data_file": "en.valid"},
        }[self.kind]
        flags = ["--output_dir", work / "out", "--cache_dir", work, "--do_train", "--do_eval"]
        flags += ["--model_name_or_path", self.assets / "model", "--no_cuda"]
        for flag, name in names.items():
            flags += [flag, self._data / name]
        for name in [*TRAINING, *TASK_FLAGS[self.kind]]:
            value = self.args.get(name, "None")
            if value == "True":
                flags.append(f"--{name}")
            elif value not in ("False", "None"):
                flags += [f"--{name}", _integer(value) if name in WHOLE else value]
        if self.args.get("evaluate_during_training") == "True":
            flags.append("--evaluate_during_training")
        if not self.finds_tickets:
            flags += ["--dir", "pre"]
        return list(map(str, flags))

    @property
    def _data(self) -> Path:
        if self.kind == "glue":
            return glue_folder(self.assets, self.task)
        return self.assets / ("squad" if self.kind == "squad" else "text")


WHOLE = {"max_steps", "logging_steps", "save_steps", "warmup_steps"}


def _integer(text: str) -> str:
    return str(int(float(text)))


def found(root: Path, what: str) -> list[ReferenceRun]:
    """The runs in `root`/imp or `root`/finetune."""
    folders = sorted(path.parent for path in (root / what).glob("*/run.json"))
    return [ReferenceRun(folder, assets_of(root), what == "imp") for folder in folders]


def redrawn(
    run: ReferenceRun,
    train: np.ndarray,
    dev: np.ndarray,
    special: list[int],
    mask_id: int,
    vocab: int,
) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """Draw the MLM masks again as the released code drew them from the global generator.

    train, dev: the blocks, int64 [n, W]; `special`: ids that are never masked. Yields ("train" or
    "dev", steps so far, masked ids, labels) in the order of the draws.
    """
    generator = torch.Generator().manual_seed(int(run.number("seed")))

    def batches(rows: np.ndarray, size: int):
        torch.empty((), dtype=torch.int64).random_(generator=generator)  # the loader's base seed
        for begin in range(0, len(rows), size):
            yield _masked(rows[begin : begin + size], generator)

    def _masked(ids: np.ndarray, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        inputs, shape = torch.from_numpy(ids.copy()), ids.shape
        chances = torch.full(shape, run.number("mlm_probability"))
        chances.masked_fill_(torch.isin(inputs, torch.tensor(special)), 0.0)
        chosen = torch.bernoulli(chances, generator=generator).bool()
        labels = torch.where(chosen, inputs, IGNORED)
        hidden = torch.bernoulli(torch.full(shape, 0.8), generator=generator).bool() & chosen
        inputs[hidden] = mask_id
        other = torch.bernoulli(torch.full(shape, 0.5), generator=generator).bool()
        other &= chosen & ~hidden
        words = torch.randint(vocab, shape, generator=generator)
        inputs[other] = words[other]
        return inputs.numpy(), labels.numpy()

    accumulation, total = int(run.number("gradient_accumulation_steps")), len(run.steps)
    during = run.evaluation_steps
    size, done = int(run.number("per_gpu_train_batch_size")), 0
    for epoch in run.order:
        for number, (ids, labels) in enumerate(batches(train[epoch], size), 1):
            if done == total:
                return
            yield "train", done, ids, labels
            done += number % accumulation == 0
            if number % accumulation == 0:
                for _ in range(during.count(done)):
                    for batch in batches(dev, int(run.number("per_gpu_eval_batch_size"))):
                        yield "dev", done, *batch
