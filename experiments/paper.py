"""Numbers of the paper: settings (Table 1), Tables 2 and 4, Figure 2 (arXiv 2007.12223).

OWN_TASKS lists tasks that the paper does not have.
"""

from dataclasses import dataclass

from utils.config import task_key
from utils.errors import UserError

_COLUMNS = ("MNLI", "QQP", "STS-B", "WNLI", "QNLI", "MRPC", "RTE", "SST-2", "CoLA", "SQuAD", "MLM")
TASKS = tuple(name.lower() for name in _COLUMNS)  # as results.jsonl has them


@dataclass(frozen=True)
class OwnTask:
    """A task of yours, trained as the paper trains GLUE tasks."""

    name: str  # printed; GlueSpec.name in lower case
    steps_per_epoch: int
    sparsity: int = 50  # percent at which subnetworks are compared


_OWN: tuple[OwnTask, ...] = ()  # for example (OwnTask("MyTask", steps_per_epoch=7),)
OWN_TASKS = {own.name.lower(): own for own in _OWN}
NAMES = dict(zip(TASKS, _COLUMNS, strict=True)) | {t: own.name for t, own in OWN_TASKS.items()}
OMP = "omp"  # the source of Figure 2's last row: theta_0 itself, pruned once
SOURCES = NAMES | {OMP: "OMP of theta_0"}  # of masks
TRANSFER_SPARSITY = 70  # percent, Figure 2
REWINDS = (5, 10, 20, 50)  # percent of training, Table 3


@dataclass(frozen=True)
class Hyperparameters:
    """How a task is trained: one round of IMP and one fine-tuning take the same number of steps."""

    learning_rate: float  # initial learning rate; it decays linearly to zero
    epochs: float
    steps_per_epoch: int
    batch_size: int
    length: int  # WordPieces per row (GLUE), window (SQuAD) or block (MLM)
    stride: int = 0  # WordPieces between the starts of two windows, SQuAD only
    by_steps: bool = False  # the scripts get --max_steps, not --num_train_epochs

    def steps(self) -> int:
        """Return the optimizer steps of one training."""
        return max(1, round(self.epochs * self.steps_per_epoch))


def _parse(text: str) -> dict[str, dict[str, float]]:
    """Return row label -> task -> number; a row is a label and one number per task."""
    rows = (line.split() for line in text.strip().splitlines())
    return {label: dict(zip(TASKS, map(float, row), strict=True)) for label, *row in rows}


# Steps per epoch, sparsities of Tables 2 and 4 (strict) in percent, Table 2 in percent points
#             MNLI    QQP  STS-B   WNLI   QNLI   MRPC    RTE  SST-2   CoLA  SQuAD    MLM
TABLE2 = _parse("""
steps        12272  11371    180     20   3274    115     78   2105    268   5541  10000
sparsity        70     90     50     90     70     50     60     60     50     40     70
strict          70     70     40     90     50     40     50     50     40     20     50
full          82.4   90.2   88.4   54.9   89.1   85.2   66.2   92.1   54.5   88.1   63.5
full_std       0.5    0.5    0.3    1.2    1.0    0.1    3.6    0.1    0.4    0.6    0.1
imp           82.6   90.0   88.2   54.9   88.9   84.9   66.0   91.9   53.8   87.7   63.2
imp_std        0.2    0.2    0.2    1.2    0.4    0.4    2.4    0.5    0.9    0.5    0.3
random        67.5   76.3   21.0   53.5   61.9   69.6   56.0   83.1    9.6   31.8   32.3
reinit        61.0   77.0    9.2   53.5   60.5   68.4   54.5   80.2    0.0   18.6   14.4
shuffled      70.1   79.2   19.6   53.3   62.0   69.6   52.7   82.6    4.0   24.2   42.3
""")
SPARSITY = {task: int(percent) for task, percent in TABLE2["sparsity"].items()}
STRICT_SPARSITY = {task: int(percent) for task, percent in TABLE2["strict"].items()}
OWN_SPARSITY = {task: own.sparsity for task, own in OWN_TASKS.items()}

# Score of the 70 % subnetwork minus the full network's: source -> target -> percent points
#             MNLI    QQP  STS-B   WNLI   QNLI   MRPC    RTE  SST-2   CoLA  SQuAD    MLM
FIGURE2 = _parse("""
mnli          0.14  -0.99  -3.63  -7.04  -1.80 -13.09  -5.41  -1.22 -43.32  -5.26  -5.96
qqp          -1.52  -0.25  -4.22  -2.82  -1.87 -12.93  -5.99  -3.25 -38.01  -6.59  -5.84
sts-b        -2.34  -1.93  -1.75   1.41  -2.97 -12.52  -8.76  -4.13 -50.20  -7.42  -5.89
wnli         -2.69  -2.67 -21.27  -5.17  -4.18 -15.33 -10.93  -4.78 -54.51  -7.85  -5.73
qnli         -1.59  -1.44  -5.24   0.00  -0.19 -13.50  -7.20  -2.49 -50.86  -5.72  -6.01
mrpc         -2.41  -2.31  -7.15   1.41  -3.48  -9.66 -11.29  -3.90 -47.03  -8.27  -5.74
rte          -2.21  -2.01  -8.90   0.94  -2.65 -13.66  -7.79  -3.90 -52.96  -7.39  -5.70
sst-2        -2.24  -1.75 -10.79  -0.94  -3.37 -14.56  -9.24  -2.06 -46.99  -7.11  -5.72
cola         -2.33  -1.90 -10.92   0.00  -2.84 -14.40 -10.56  -3.48 -15.62  -7.15  -5.67
squad        -1.49  -1.29  -4.31  -0.94   0.26 -13.17  -6.23  -1.87 -46.48  -2.83  -6.01
mlm           0.20  -0.16  -0.97   0.12   0.30  -3.65  -6.35  -0.19  -7.36  -2.29  -0.34
omp           0.07  -0.57  -3.12  -1.41  -0.01 -12.68  -7.32  -0.99 -22.30  -2.83  -6.39
""")

_STEPS = {task: int(steps) for task, steps in TABLE2["steps"].items()}
_STEPS |= {task: own.steps_per_epoch for task, own in OWN_TASKS.items()}
HYPERPARAMETERS = {  # Table 1
    **{t: Hyperparameters(2e-5, 3, n, batch_size=32, length=128) for t, n in _STEPS.items()},
    "squad": Hyperparameters(3e-5, 2, _STEPS["squad"], batch_size=16, length=384, stride=128),
    # an "epoch" is what the paper trains in one round
    "mlm": Hyperparameters(5e-5, 1, _STEPS["mlm"], batch_size=16, length=512, by_steps=True),
}


def task_keys(names: list[str] | None) -> tuple[str, ...]:
    """Return the tasks that the user names ("STS-B", "sts-b", "stsb") as results.jsonl has them.

    "all" and None stand for the paper's eleven. Raises UserError for an unknown name.
    """
    known = {task_key(task): (task,) for task in NAMES} | {"all": TASKS}
    keys: list[str] = []
    for name in ["all"] if names is None else names:
        found = known.get(task_key(name))
        if found is None:
            choices = ", ".join(NAMES.values())
            raise UserError(f"{name!r} is no task; choose from {choices}, or give all")
        keys += found
    return tuple(dict.fromkeys(keys))
