"""What the paper reports, as data: Table 1's settings, Table 2, Table 4's sparsities, Figure 2 (arXiv 2007.12223)."""

from dataclasses import dataclass

from utils.errors import UserError

NAMES = {
    "mnli": "MNLI",
    "qqp": "QQP",
    "sts-b": "STS-B",
    "wnli": "WNLI",
    "qnli": "QNLI",
    "mrpc": "MRPC",
    "rte": "RTE",
    "sst-2": "SST-2",
    "cola": "CoLA",
    "squad": "SQuAD",
    "mlm": "MLM",
}  # task as results.jsonl has it -> as the paper prints it, in the order of its columns
TASKS = tuple(NAMES)
OMP = "omp"  # the source of Figure 2's last row: theta_0 itself, pruned once
TRANSFER_SPARSITY = 70  # percent, Figure 2
REWINDS = (5, 10, 20, 50)  # percent of training, Table 3


@dataclass(frozen=True)
class Recipe:
    """How a task is trained: one round of IMP and one fine-tuning take the same number of steps."""

    rate: float  # initial learning rate, falling linearly to zero
    epochs: float
    steps_per_epoch: int
    batch: int
    length: int  # WordPieces a row (GLUE), a window (SQuAD) or a block (MLM)
    stride: int = 0  # WordPieces between the starts of two windows, SQuAD only
    by_steps: bool = False  # told to the scripts as --max_steps, not as --num_train_epochs

    def steps(self) -> int:
        """Optimizer steps of one training."""
        return max(1, round(self.epochs * self.steps_per_epoch))


def _glue(steps_per_epoch: int) -> Recipe:
    return Recipe(rate=2e-5, epochs=3, steps_per_epoch=steps_per_epoch, batch=32, length=128)


RECIPES = {
    "mnli": _glue(12272),
    "qqp": _glue(11371),
    "sts-b": _glue(180),
    "wnli": _glue(20),
    "qnli": _glue(3274),
    "mrpc": _glue(115),
    "rte": _glue(78),
    "sst-2": _glue(2105),
    "cola": _glue(268),
    "squad": Recipe(rate=3e-5, epochs=2, steps_per_epoch=5541, batch=16, length=384, stride=128),
    "mlm": Recipe(rate=5e-5, epochs=1, steps_per_epoch=10000, batch=16, length=512, by_steps=True),
}  # Table 1; for MLM an "epoch" is what the paper trains a round

Score = tuple[
    float, float | None
]  # mean and, where the paper has one, standard deviation, in percent points


def _row(cells: str) -> dict[str, Score]:
    """One row of Table 2, "mean" or "mean±deviation" per task in the order of TASKS."""
    scores = {}
    for task, cell in zip(TASKS, cells.split(), strict=True):
        mean, _, deviation = cell.partition("±")
        scores[task] = (float(mean), float(deviation) if deviation else None)
    return scores


def _numbers(cells: str) -> dict[str, float]:
    return {task: mean for task, (mean, _) in _row(cells).items()}


SPARSITY = {
    t: int(s) for t, s in _numbers("70 90 50 90 70 50 60 60 50 40 70").items()
}  # percent, Table 2
STRICT_SPARSITY = {
    t: int(s) for t, s in _numbers("70 70 40 90 50 40 50 50 40 20 50").items()
}  # percent, Table 4

TABLE2 = {
    "full": _row(
        "82.4±0.5 90.2±0.5 88.4±0.3 54.9±1.2 89.1±1.0 85.2±0.1 66.2±3.6 92.1±0.1 54.5±0.4 88.1±0.6 63.5±0.1"
    ),
    "imp": _row(
        "82.6±0.2 90.0±0.2 88.2±0.2 54.9±1.2 88.9±0.4 84.9±0.4 66.0±2.4 91.9±0.5 53.8±0.9 87.7±0.5 63.2±0.3"
    ),
    "random": _row("67.5 76.3 21.0 53.5 61.9 69.6 56.0 83.1 9.6 31.8 32.3"),
    "reinit": _row("61.0 77.0 9.2 53.5 60.5 68.4 54.5 80.2 0.0 18.6 14.4"),
    "shuffled": _row("70.1 79.2 19.6 53.3 62.0 69.6 52.7 82.6 4.0 24.2 42.3"),
}

FIGURE2 = {
    "mnli": _numbers("0.14 -0.99 -3.63 -7.04 -1.80 -13.09 -5.41 -1.22 -43.32 -5.26 -5.96"),
    "qqp": _numbers("-1.52 -0.25 -4.22 -2.82 -1.87 -12.93 -5.99 -3.25 -38.01 -6.59 -5.84"),
    "sts-b": _numbers("-2.34 -1.93 -1.75 1.41 -2.97 -12.52 -8.76 -4.13 -50.20 -7.42 -5.89"),
    "wnli": _numbers("-2.69 -2.67 -21.27 -5.17 -4.18 -15.33 -10.93 -4.78 -54.51 -7.85 -5.73"),
    "qnli": _numbers("-1.59 -1.44 -5.24 0.00 -0.19 -13.50 -7.20 -2.49 -50.86 -5.72 -6.01"),
    "mrpc": _numbers("-2.41 -2.31 -7.15 1.41 -3.48 -9.66 -11.29 -3.90 -47.03 -8.27 -5.74"),
    "rte": _numbers("-2.21 -2.01 -8.90 0.94 -2.65 -13.66 -7.79 -3.90 -52.96 -7.39 -5.70"),
    "sst-2": _numbers("-2.24 -1.75 -10.79 -0.94 -3.37 -14.56 -9.24 -2.06 -46.99 -7.11 -5.72"),
    "cola": _numbers("-2.33 -1.90 -10.92 0.00 -2.84 -14.40 -10.56 -3.48 -15.62 -7.15 -5.67"),
    "squad": _numbers("-1.49 -1.29 -4.31 -0.94 0.26 -13.17 -6.23 -1.87 -46.48 -2.83 -6.01"),
    "mlm": _numbers("0.20 -0.16 -0.97 0.12 0.30 -3.65 -6.35 -0.19 -7.36 -2.29 -0.34"),
    OMP: _numbers("0.07 -0.57 -3.12 -1.41 -0.01 -12.68 -7.32 -0.99 -22.30 -2.83 -6.39"),
}  # source -> target -> score of the 70 % subnetwork minus the full network's


def task_keys(names: list[str] | None) -> tuple[str, ...]:
    """Tasks as the user writes them ("STS-B", "sts-b", "stsb") as the rows write them; the paper's eleven if None.

    Raises UserError for a name that is no task.
    """
    bare = {task.replace("-", ""): task for task in TASKS}
    keys = []
    for name in TASKS if names is None else names:
        key = bare.get(name.lower().replace("-", "").replace("_", ""))
        if key is None:
            raise UserError(
                f"{name!r} is no task of the paper; choose from {', '.join(NAMES.values())}"
            )
        keys.append(key)
    return tuple(dict.fromkeys(keys))
