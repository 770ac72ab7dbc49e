"""Final scores of all runs below a folder, in one DataFrame, and their mean over seeds.

Scores of different recipes (Table 1's settings) are neither averaged nor compared.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments import paper
from utils import files
from utils.errors import UserError
from utils.pruning.origin import Origin
from utils.runs.records import EvaluationRecord, read_records

STANDARD = "standard"  # pruning without rewinding
FULL = "full network"
KINDS = {  # of networks -> source of the mask, initial weights
    FULL: ("", "pre"),
    "IMP": ("imp", "pre"),
    "one-shot": ("omp", "pre"),
    "layer-wise one-shot": ("layerwise", "pre"),  # ours
    "IMP, shuffled within matrices": ("shuffled", "pre"),  # ours
    "one-shot encoder, IMP pooler": ("omp+imp", "pre"),  # ours; experiments/reproduce/pooler.py
    "IMP encoder, one-shot pooler": ("imp+omp", "pre"),  # ours
    "random mask": ("random", "pre"),
    "IMP, random weights": ("imp", "rand"),
    "IMP, layers shuffled": ("imp", "layers"),
    "IMP, elements shuffled": ("imp", "elements"),
    "IMP, noise added": ("imp", "noise"),  # ours
}
SUBNETWORKS = [kind for kind in KINDS if kind != FULL]
KEY = [  # columns that identify a score; see `describe`
    *("task", "method", "seed", "init", "init_task", "init_rewinding", "init_seed", "percent"),
    *("source", "source_task", "source_seed", "shuffled_from", "rewinding", "as_released"),
]
OF_IMP = ("imp", "shuffled", "omp+imp", "imp+omp")  # sources of masks that depend on a task

FLAGS = (
    *("model_name_or_path", "config_name", "learning_rate", "warmup_steps", "weight_decay"),
    *("adam_epsilon", "max_grad_norm", "max_seq_length", "doc_stride", "block_size"),
    *("mlm_probability", "max_train_samples", "max_eval_samples"),
)
BATCH_FLAGS = ("per_gpu_train_batch_size", "gradient_accumulation_steps", "processes")


@dataclass(frozen=True)
class Cell:
    """Mean and sample standard deviation (None for one seed) over `n` seeds, in percent points.

    The mean is nan, without a deviation, if the score of a seed is not defined: the correlation of
    a network that predicts one value for every row.
    """

    mean: float
    std: float | None
    n: int  # 0: quoted from the paper
    from_rounds: bool = False  # scores of IMP's own rounds, not of separate trainings
    dark: bool = False  # printed bold

    @classmethod
    def of(cls, scores: list[float], from_rounds: bool = False) -> "Cell | None":
        """Return the cell of some scores, None without any."""
        if not scores:
            return None
        mean = float(np.mean(scores))
        has_std = len(scores) > 1 and not math.isnan(mean)
        std = float(np.std(scores, ddof=1)) if has_std else None
        return cls(mean, std, len(scores), from_rounds)

    def minus(self, baseline: "Cell") -> "Cell":
        """Return the difference of the means, with the deviation of this cell."""
        mean = self.mean - baseline.mean
        return replace(self, mean=mean, std=None if math.isnan(mean) else self.std)


class Results:
    """The final rows below one folder, and notices about rows that are left out.

    `rows` has the columns KEY, recipe, score (percent points, nan if it is not defined), where
    (file and line), folder, step.
    """

    def __init__(self, rows: pd.DataFrame, notices: list[str]) -> None:
        self.rows, self.notices = rows, notices
        self._used: dict[str, dict[int, None]] = {}  # task -> index of the rows averaged so far

    def select(self, task: str, kind: str, **wanted: Any) -> pd.DataFrame:
        """Return the rows of one of KINDS that have these values in KEY.

        The default is IMP on the task itself that rewinds to theta_0.
        """
        source, init = KINDS[kind]
        columns = {"task": task, "source": source, "init": init, "rewinding": "0"}
        if source in OF_IMP:
            columns["source_task"] = task
        equal = [self.rows[k].to_numpy() == value for k, value in (columns | wanted).items()]
        return self.rows[np.logical_and.reduce(equal)]

    def averaged(self, task: str, kind: str, percent: float, **wanted: Any) -> pd.DataFrame:
        """Return the rows of separate trainings if any, else of rounds of IMP.

        Raises UserError if their recipe differs from that of a row of `task` used before.
        """
        found = self.select(task, kind, percent=percent, **wanted)
        trained = found["method"] == "train"
        found = found[trained] if trained.any() else found
        used = self._used.setdefault(task, {})
        if not used.keys() >= set(found.index):
            used |= dict.fromkeys(found.index)
            check_recipe(task, self.rows.loc[list(used)])
        return found

    def cell(self, task: str, kind: str, percent: float, **wanted: Any) -> Cell | None:
        """Return the mean over the rows of `averaged`, None without any."""
        found = self.averaged(task, kind, percent, **wanted)
        rounds = not (found["method"] == "train").any()
        return Cell.of(found["score"].tolist(), from_rounds=rounds)

    def percent(self, tasks: Iterable[str], default: float, own: bool) -> float:
        """Return the `most_common` sparsity of the subnetworks trained on `tasks`.

        Rounds of IMP count if there is no separate training. `own`: masks of another task do not.
        """
        rows = self.rows[self.rows["task"].isin(tasks) & (self.rows["source"] != "")]
        if own:
            rows = rows[~rows["source"].isin(OF_IMP) | (rows["source_task"] == rows["task"])]
        trained = rows["method"] == "train"
        return most_common(rows["percent"][trained | ~trained.any()], default)

    def full(self, task: str) -> Cell | None:
        """Return f(x, theta_0)."""
        return self.cell(task, FULL, 0.0)


def most_common(percents: Iterable[float], default: float) -> float:
    """Return `default` if it is among `percents`, else the most common, of equals the nearest."""
    counts = {default: 0} | Counter(percents)
    return default if counts[default] else max(counts, key=lambda p: (counts[p], -abs(p - default)))


def read(folder: Path, as_released: bool = False) -> Results:
    """Read every final row below `folder`, with the masks of `as_released` IMP or of Algorithm 1.

    Invalid rows, and rows of one key and recipe with different scores, are left out with a notice.
    Raises UserError if there is no results file.
    """
    paths = sorted(folder.rglob(files.RESULTS))
    if not paths:
        remedy = "give the folder that holds the output folders"
        raise UserError(f"{folder}: no {files.RESULTS} below it; {remedy}")
    found: list[dict[str, Any]] = []
    notices: list[str] = []
    for path in paths:
        if aside := files.moved_aside(path, folder):
            notices.append(f"{aside}: moved aside by a later run; give it alone to read it")
            continue
        records, problems = read_records(path)
        notices += problems
        for number, record in records:
            where = f"{path}, line {number}"
            if record.mask_info and record.mask_info.mask_sha256 not in (None, record.mask_sha256):
                notices.append(f"{where}: 'mask_info' describes another mask; left out")
                continue
            if record.mask and record.mask_info is None:
                notices.append(f"{where}: no origin of {record.mask}; in no table")
            usual = record.args.get("data_seed") is None  # else a pair for connectivity.py
            if record.final and usual and record.method in ("train", "imp"):
                location = {"where": where, "folder": path.parent, "step": record.step}
                found.append(describe(record) | location)
    columns = [*KEY, "recipe", "score", "where", "folder", "step"]
    rows = pd.DataFrame(found, columns=columns, dtype=object)
    of_imp = rows["source"].isin(OF_IMP) | (rows["method"] == "imp")
    rows = rows[(rows["as_released"] == as_released) | ~of_imp]
    return Results(_without_repetitions(rows, notices), notices)


def describe(record: EvaluationRecord) -> dict[str, Any]:
    """Return KEY, recipe and score of a row."""
    init, mask, args = record.init_info or Origin(), record.mask_info or Origin(), record.args
    source = mask.method or ("unknown" if record.mask else "")
    ranks_theta_0 = mask.method not in (None, "random", *OF_IMP)  # with any seed
    source_seed = None if ranks_theta_0 else mask.seed
    if ranks_theta_0 and mask.weight == "rand":
        source += "_rand"  # it ranks theta_0'
    if record.method == "imp" and mask == Origin():  # IMP's first round, still without a mask
        steps = args.get("rewind_steps")  # if i > 0, this is no training of theta_0
        later = max(0.01, steps / max(1, record.step)) if steps else 0.0
        rewind = "none" if args.get("no_rewind") else "theta_i"
        mask = Origin(rewind=rewind, rewind_fraction=later, as_released=args.get("as_released"))
    init_rewinding = None if init.rewind_fraction is None else rewinding_label(init)
    score = math.nan if record.score is None else float(record.score)
    return {
        **{"task": record.task, "method": record.method, "seed": record.seed, "init": record.init},
        **{"init_task": init.task, "init_rewinding": init_rewinding, "init_seed": init.seed},
        **{"source": source, "source_task": mask.task, "source_seed": source_seed},
        "shuffled_from": mask.shuffled_from,
        **{"rewinding": rewinding_label(mask), "as_released": bool(mask.as_released)},
        **{"percent": round(100 * record.sparsity, 1), "score": score},
        "recipe": _recipe(record),
    }


def rewinding_label(origin: Origin) -> str:
    """Return the point that IMP rewound to, in whole percent of training, or STANDARD."""
    if origin.rewind == "none" and not origin.as_released:
        return STANDARD
    return f"{100 * (origin.rewind_fraction or 0.0):.0f}"


def _recipe(record: EvaluationRecord) -> dict[str, Any]:
    """Return the settings that a row states; a missing one agrees with every value.

    The length is that of a training, or of a round of IMP (not its --max_steps). Only steps are
    compared with rounds: plan.py uses the paper's steps for rounds, and epochs depend on the rows
    of the data at hand.
    """
    args = {"max_train_samples": None, "max_eval_samples": None, **record.args}  # None: all rows
    stated: dict[str, Any] = {f"--{flag}": args[flag] for flag in FLAGS if flag in args}
    if "model_name_or_path" in args:
        model = Path(str(args["model_name_or_path"]))  # ./bert/ is bert
        stated["--model_name_or_path"] = str(model)
    sizes = [args.get(flag) or 1 for flag in BATCH_FLAGS]
    if BATCH_FLAGS[0] in args and all(isinstance(size, int) for size in sizes):
        name = "batch (--per_gpu_train_batch_size x --gradient_accumulation_steps x processes)"
        stated[name] = math.prod(sizes)  # 2 processes of 8 rows are 1 of 16
    if "bf16" in args:
        name = "precision (--fp16, --bf16, --tf32)"
        stated[name] = next((p for p in ("fp16", "bf16", "tf32") if args.get(p)), "fp32")
    if record.init_info and record.init_info.sigma is not None:
        stated["--sigma of the noise"] = record.init_info.sigma
    steps, epochs = args.get("max_steps"), args.get("num_train_epochs")
    length = "length (--max_steps, --num_train_epochs)"
    round_length = "length (--save_steps of IMP, --max_steps of a training)"
    if record.method == "imp":
        if record.round:
            stated[round_length] = f"{record.step / record.round:.12g} steps"
    elif isinstance(steps, int) and steps > 0:
        stated[length], stated[round_length] = f"{steps} steps", f"{steps:.12g} steps"
    elif isinstance(epochs, int | float):
        stated[length] = f"{epochs:g} epochs"
    return stated


def _difference(rows: pd.DataFrame) -> str | None:
    """Return the first difference between the recipes of these rows, None if they agree."""
    first: dict[str, tuple[Any, Path]] = {}
    for recipe, here in zip(rows["recipe"], rows["folder"], strict=True):
        for name, value in recipe.items():
            one, there = first.setdefault(name, (value, here))
            if one != value:
                return f"{name} is {one} in {there} and {value} in {here}"
    return None


def check_recipe(task: str, rows: pd.DataFrame) -> None:
    """Raise UserError if rows of `task` have different recipes."""
    difference = _difference(rows)
    if difference:
        raise UserError(
            f"{paper.NAMES.get(task, task)}: {difference}; scores of different recipes are neither "
            "averaged nor compared: give a folder with the runs of one recipe, such as runs/NAME"
        )


def _without_repetitions(rows: pd.DataFrame, notices: list[str]) -> pd.DataFrame:
    """Return the rows with each key once, without keys of contradicting scores.

    Rows of one key and different recipes stay: `Results.cell` refuses them if a table uses them.
    """
    drop: list[int] = []
    repeated = rows[rows.duplicated(KEY, keep=False)]
    for _, group in repeated.groupby(KEY, dropna=False, sort=False):
        scores = group["score"].to_numpy(float)
        if _difference(group):
            continue
        if np.allclose(scores, scores[0], rtol=0, atol=1e-9, equal_nan=True):
            drop += group.index[1:].tolist()
            continue
        drop += group.index.tolist()
        key = group[KEY].iloc[0].dropna()
        which = ", ".join(f"{name} {v}" for name, v in key.items() if v not in ("", False))
        values = "; ".join(f"{row.score:.2f} in {row.where}" for row in group.itertuples())
        notices.append(f"contradiction, all left out: {which}: {values}")
    return rows.drop(index=drop)
