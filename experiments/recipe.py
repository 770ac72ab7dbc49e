"""What a results row says of how it was trained, and the refusal to average or compare rows of two recipes."""

import math
from pathlib import Path

from experiments import paper
from utils.errors import UserError

FLAGS = (
    "model_name_or_path",
    "config_name",
    "learning_rate",
    "warmup_steps",
    "weight_decay",
    "adam_epsilon",
    "max_grad_norm",
    "max_seq_length",
    "doc_stride",
    "block_size",
    "mlm_probability",
)
BATCH = (
    "per_gpu_train_batch_size",
    "gradient_accumulation_steps",
    "processes",
)  # what is not told is 1
PRECISIONS = ("fp16", "bf16", "tf32")

Recipe = tuple[tuple[str, object], ...]  # (flag as a message names it, value), the model first


def told(content: dict) -> Recipe:
    """The recipe of a results row; what its `args` do not tell is not in it, so it agrees with everything."""
    arguments = content.get("args") or {}
    pairs = {f"--{flag}": arguments[flag] for flag in FLAGS if flag in arguments}
    if "model_name_or_path" in arguments:
        pairs["--model_name_or_path"] = str(
            Path(str(arguments["model_name_or_path"]))
        )  # ./bert/ is bert
    pairs |= _batch(arguments) | _precision(arguments) | _length(content, arguments)
    return tuple(
        (name, value if isinstance(value, str | int | float) else str(value))
        for name, value in pairs.items()
    )


def _batch(arguments: dict) -> dict[str, int]:
    """Rows of an optimizer step: 2 processes of 8 are 1 of 16."""
    sizes = [arguments.get(name) or 1 for name in BATCH]
    if BATCH[0] not in arguments or not all(isinstance(size, int) for size in sizes):
        return {}
    return {
        "batch (--per_gpu_train_batch_size x --gradient_accumulation_steps x processes)": math.prod(
            sizes
        )
    }


def _precision(arguments: dict) -> dict[str, str]:
    if "bf16" not in arguments:
        return {}
    return {
        "precision (--fp16, --bf16, --tf32)": next(
            (name for name in PRECISIONS if arguments.get(name)), "fp32"
        )
    }


def _length(content: dict, arguments: dict) -> dict[str, str]:
    """Length of a training, or of a round of IMP, whose --max_steps are those of all rounds; both where they must agree.

    Epochs are not held against a round's steps: plan.py counts the paper's steps for rounds, epochs count the data's own.
    """
    steps, epochs = arguments.get("max_steps"), arguments.get("num_train_epochs")
    fixed = isinstance(steps, int) and steps > 0
    if content["method"] == "imp":
        steps, rounds = content.get("step"), content.get("round")
        known = isinstance(steps, int) and isinstance(rounds, int) and rounds > 0
        return _round(steps / rounds) if known else {}
    length = (
        f"{steps} steps"
        if fixed
        else f"{epochs:g} epochs"
        if isinstance(epochs, int | float)
        else None
    )
    return ({"length (--max_steps, --num_train_epochs)": length} if length else {}) | (
        _round(steps) if fixed else {}
    )


def _round(steps: float) -> dict[str, str]:
    return {"length (--save_steps of IMP, --max_steps of a training)": f"{steps:.12g} steps"}


def agree(one: Recipe, other: Recipe) -> bool:
    """Whether two rows tell no flag differently."""
    told_there = dict(other)
    return all(told_there.get(name, value) == value for name, value in one)


class Agreement:
    """The recipe of each task, as the rows taken so far tell it."""

    def __init__(self):
        self._first: dict[tuple[str, str], tuple[object, str]] = {}

    def take(self, task: str, recipe: Recipe, where: str) -> None:
        """Hold one more row against the others of `task`. Raises UserError if it was trained by another recipe."""
        for name, value in recipe:
            first, there = self._first.setdefault((task, name), (value, where))
            if value != first:
                raise UserError(
                    f"{paper.NAMES.get(task, task)}: {name} is {first} in {_folder(there)} and {value} in "
                    f"{_folder(where)}; scores of two recipes are neither averaged nor compared: give a "
                    "folder that holds the runs of one, such as runs/NAME"
                )


def _folder(where: str) -> Path:
    """The folder of "FILE, line N"."""
    return Path(where.rpartition(", line ")[0]).parent
