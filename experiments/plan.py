"""Print the commands behind a table or figure of the paper, one a line, in an order in which they can run."""

import argparse
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # so that `python experiments/plan.py` finds utils

from experiments import command, paper
from experiments.paper import Recipe
from utils import files
from utils.errors import UserError

HIGHEST = 90  # percent, where IMP's usual schedule 10, 20, ... ends
SHUFFLES = ("layers", "elements", "noise")  # modes of pertub_weight.py
MINI = dict.fromkeys(
    paper.TASKS,
    Recipe(rate=5e-4, epochs=1, steps_per_epoch=200, batch=16, length=64, by_steps=True),
) | {
    "squad": Recipe(
        rate=5e-4, epochs=1, steps_per_epoch=200, batch=16, length=128, stride=32, by_steps=True
    )
}  # ours: for a small BERT and small data, minutes on a laptop


@dataclass(frozen=True)
class Job:
    """One shell command, the folder or file it leaves behind, and the jobs it needs the output of."""

    words: tuple[str, ...]
    output: Path
    inputs: tuple["Job", ...] = ()

    @property
    def stage(self) -> int:
        """1, or one more than the last of its inputs."""
        return 1 + max((job.stage for job in self.inputs), default=0)


@dataclass(frozen=True)
class Source:
    """A mask to train with, or weights to start from: its name in folder names, its file, the job that makes it."""

    name: str
    file: Path
    job: Job


class Plan:
    """The jobs asked for so far, each once, and how to say each of them.

    `recipes`: task -> hyper-parameters; `changed`: task -> what differs from the preset, for its folder's name;
    `imp_to`: percent at which IMP's usual schedule ends; `flags`: words appended to every training command.
    """

    def __init__(
        self,
        model: str,
        data: Path,
        out: Path,
        recipes: dict[str, Recipe],
        changed: dict[str, str],
        imp_to: int,
        flags: list[str],
    ):
        self.model, self.data, self.out, self.recipes, self.changed = (
            model,
            data,
            out,
            recipes,
            changed,
        )
        self.imp_to, self.flags = imp_to, flags
        self.jobs: dict[Path, Job] = {}

    def _add(self, words: list[object], output: Path, inputs: tuple[Job, ...] = ()) -> Job:
        return self.jobs.setdefault(output, Job(tuple(str(word) for word in words), output, inputs))

    def _folder(self, task: str) -> Path:
        return self.out / f"{paper.NAMES[task]}{self.changed[task]}"

    def imp(self, task: str, seed: int, to: int | None = None, rewind: int | None = 0) -> Job:
        """IMP to `to` percent (the usual schedule's end if None), rewinding to `rewind` percent (None: never)."""
        recipe, last, how = self.recipes[task], to or self.imp_to, _how(rewind)
        output = self._folder(task) / f"{how}-to{last}" / f"seed{seed}"
        words = [*_script(task, "imp"), "--output_dir", output, *self._training(task, seed)]
        schedule = _schedule(last)
        words += [
            "--max_steps",
            (len(schedule) + 1) * recipe.steps(),
            "--save_steps",
            recipe.steps(),
        ]
        if schedule != _schedule(HIGHEST):
            words += ["--sparsities", *(f"{percent / 100:g}" for percent in schedule)]
        if rewind:
            words += ["--rewind_steps", max(1, round(rewind / 100 * recipe.steps()))]
        if rewind is None:
            words += ["--no_rewind"]
        return self._add([*words, "--save_total_limit", 1, *self.flags], output)

    def ticket(self, task: str, seed: int, percent: int, rewind: int | None = 0) -> Source:
        """The mask of `percent` that IMP finds on `task`."""
        beyond = percent > self.imp_to or percent not in _schedule(self.imp_to)
        job = self.imp(task, seed, percent if beyond or rewind != 0 else None, rewind)
        rounds = _schedule(percent).index(percent) + 1
        file = job.output / files.checkpoint_name(rounds * self.recipes[task].steps()) / files.MASK
        return Source(
            f"{_how(rewind)}-{paper.NAMES[task]}{self.changed[task]}-{percent}-seed{seed}",
            file,
            job,
        )

    def one_shot(self, percent: int, seed: int | None = None) -> Source:
        """The mask of `percent` of theta_0's largest weights, or a random one drawn by `seed`."""
        method, name = (
            ("magnitude", f"omp-{percent}")
            if seed is None
            else ("random", f"random-{percent}-seed{seed}")
        )
        output = self.out / "masks" / name
        words = [
            "python",
            "oneshot.py",
            "--weight",
            "pre",
            "--model",
            "glue",
            "--rate",
            f"{percent / 100:g}",
        ]
        words += [
            "--method",
            method,
            "--seed",
            seed or 0,
            "--model_name_or_path",
            self.model,
            "--output_dir",
            output,
        ]
        return Source(name, output / files.MASK, self._add(words, output))

    def perturbed(self, mode: str, seed: int) -> Source:
        """theta_0'': shuffled or noisy pre-trained weights."""
        name = f"{mode}-seed{seed}"
        output = self.out / "weights" / f"{name}.pt"
        words = ["python", "pertub_weight.py", "--mode", mode, "--seed", seed]
        return Source(
            name,
            output,
            self._add([*words, "--model_name_or_path", self.model, "--output", output], output),
        )

    def train(
        self,
        task: str,
        seed: int,
        mask: Source | None = None,
        init: str = "pre",
        weights: Source | None = None,
    ) -> Job:
        """Train the subnetwork `mask` (the full network if None) of `init` "pre" or "rand", or of other `weights`."""
        name = f"{weights.name if weights else init}.{mask.name if mask else 'full'}"
        output = self._folder(task) / name / f"seed{seed}"
        words = [*_script(task, "train"), "--dir", init]
        words += ["--mask_dir", mask.file] if mask else []
        words += ["--weight_pertub", weights.file] if weights else []
        words += ["--output_dir", output, *self._training(task, seed), *self._length(task)]
        words += [
            "--save_steps",
            0,
            "--save_total_limit",
            0,
        ]  # no models: a table needs the scores alone
        return self._add(
            [*words, *self.flags], output, tuple(source.job for source in (mask, weights) if source)
        )

    def _training(self, task: str, seed: int) -> list[object]:
        recipe = self.recipes[task]
        return [
            *_data(task, self.data, recipe),
            "--model_type",
            "bert",
            "--model_name_or_path",
            self.model,
            "--do_train",
            "--do_eval",
            "--per_gpu_train_batch_size",
            recipe.batch,
            "--learning_rate",
            f"{recipe.rate:g}",
            "--seed",
            seed,
        ]

    def _length(self, task: str) -> list[object]:
        recipe = self.recipes[task]
        return (
            ["--max_steps", recipe.steps()]
            if recipe.by_steps
            else ["--num_train_epochs", f"{recipe.epochs:g}"]
        )

    def stages(self) -> list[list[Job]]:
        """The jobs, those that can run side by side together."""
        last = max((job.stage for job in self.jobs.values()), default=0)
        return [
            [job for job in self.jobs.values() if job.stage == stage]
            for stage in range(1, last + 1)
        ]


def _schedule(last: int) -> list[int]:
    """Percents after IMP's rounds: 10, 20, ... and at the end `last`."""
    return [*range(10, last, 10), last]


def _how(rewind: int | None) -> str:
    """The kind of IMP, as folder names tell it."""
    return {0: "imp", None: "imp-norewind"}.get(rewind, f"imp-rewind{rewind}")


def _script(task: str, what: str) -> list[str]:
    """The command that finds tickets ("imp") or trains one ("train") on `task`."""
    scripts = {
        "squad": ("squad_trans.py", "squad_trans.py"),
        "mlm": ("LT_pretrain.py", "pretrain_trans.py"),
    }
    imp, train = scripts.get(task, ("LT_glue.py", "glue_trans.py"))
    return ["python", "-u", imp if what == "imp" else train]


def _data(task: str, data: Path, recipe: Recipe) -> list[object]:
    """The flags that name the task's data, under `data` laid out as get_data.py does it."""
    if task == "squad":
        return [
            "--train_file",
            data / "SQuAD/train-v1.1.json",
            "--predict_file",
            data / "SQuAD/dev-v1.1.json",
            "--do_lower_case",
            "--max_seq_length",
            recipe.length,
            "--doc_stride",
            recipe.stride,
        ]
    if task == "mlm":
        return [
            "--mlm",
            "--train_data_file",
            data / "pretrain_data/en.train",
            "--eval_data_file",
            data / "pretrain_data/en.valid",
            "--block_size",
            recipe.length,
        ]
    name = paper.NAMES[task]
    return [
        "--task_name",
        name,
        "--data_dir",
        data / "glue_data" / name,
        "--do_lower_case",
        "--max_seq_length",
        recipe.length,
    ]


@dataclass(frozen=True)
class Wanted:
    """For what the commands are: tasks, seeds, and which controls; `sparsity`: task -> percent, where the user chose."""

    tasks: tuple[str, ...]
    sources: tuple[str, ...]
    seeds: tuple[int, ...]
    sparsity: dict[str, int]
    shuffles: tuple[str, ...]

    def percent(self, task: str, default: dict[str, int]) -> int:
        """The sparsity to compare at."""
        return self.sparsity.get(task, default[task])

    def transfer_percent(self, task: str) -> int:
        """The sparsity of the masks found on `task` that are moved between tasks."""
        return self.sparsity.get(task, paper.TRANSFER_SPARSITY)


def table2(plan: Plan, wanted: Wanted) -> None:
    """Full network, IMP to its end, and at the paper's sparsity the ticket, OMP and the controls."""
    for task in wanted.tasks:
        percent = wanted.percent(task, paper.SPARSITY)
        for seed in wanted.seeds:
            plan.train(task, seed)
            ticket = plan.ticket(task, seed, percent)
            plan.train(task, seed, ticket)
            plan.train(task, seed, plan.one_shot(percent, seed))
            plan.train(task, seed, ticket, init="rand")
            for mode in wanted.shuffles:
                plan.train(task, seed, ticket, weights=plan.perturbed(mode, seed))
            plan.train(task, seed, plan.one_shot(percent))


def table3(plan: Plan, wanted: Wanted) -> None:
    """IMP with rewinding to 0, 5, 10, 20 and 50 %, and without, each to the paper's sparsity."""
    for task in wanted.tasks:
        percent = wanted.percent(task, paper.SPARSITY)
        for seed in wanted.seeds:
            plan.train(task, seed)
            plan.train(task, seed, plan.ticket(task, seed, percent))
            for rewind in (*paper.REWINDS, None):
                plan.imp(task, seed, percent, rewind)


def table4(plan: Plan, wanted: Wanted) -> None:
    """Full network, IMP to its end, and the ticket at the paper's strict sparsity."""
    for task in wanted.tasks:
        for seed in wanted.seeds:
            plan.train(task, seed)
            plan.train(
                task, seed, plan.ticket(task, seed, wanted.percent(task, paper.STRICT_SPARSITY))
            )


def figure2(plan: Plan, wanted: Wanted) -> None:
    """The 70 % masks of every source, and OMP's, trained on every target."""
    for task in wanted.tasks:
        for seed in wanted.seeds:
            plan.train(task, seed)
            for source in wanted.sources:
                plan.train(task, seed, plan.ticket(source, seed, wanted.transfer_percent(source)))
            plan.train(task, seed, plan.one_shot(wanted.transfer_percent(task)))


def figure_rewind(plan: Plan, wanted: Wanted) -> None:
    """The 70 % subnetworks of the sources, rewound to theta_i, trained on every target (section 4, question 3)."""
    for task in wanted.tasks:
        for seed in wanted.seeds:
            plan.train(task, seed)
            for source in wanted.sources:
                percent = wanted.transfer_percent(source)
                plan.train(task, seed, plan.ticket(source, seed, percent))
                for rewind in paper.REWINDS:
                    mask = plan.ticket(source, seed, percent, rewind)
                    theta_i = Source("rewound", mask.job.output / files.REWIND_WEIGHTS, mask.job)
                    plan.train(task, seed, mask, weights=theta_i)


def figure_overlap(plan: Plan, wanted: Wanted) -> None:
    """The masks alone: IMP on every task, and OMP at every sparsity."""
    for task in wanted.tasks:
        for seed in wanted.seeds:
            plan.ticket(task, seed, wanted.transfer_percent(task))
    for percent in _schedule(plan.imp_to):
        plan.one_shot(percent)


def figure_sparsity(plan: Plan, wanted: Wanted) -> None:
    """IMP's rounds, and OMP and random masks at each of their sparsities."""
    for task in wanted.tasks:
        for seed in wanted.seeds:
            plan.train(task, seed)
            plan.imp(task, seed)
            for percent in _schedule(plan.imp_to):
                plan.train(task, seed, plan.one_shot(percent))
                plan.train(task, seed, plan.one_shot(percent, seed))


BUILDERS: dict[str, Callable[[Plan, Wanted], None]] = {
    f.__name__: f
    for f in (table2, table3, table4, figure2, figure_rewind, figure_overlap, figure_sparsity)
}


def per_task(flag: str, words: list[str] | None, convert: Callable[[str], float]) -> dict:
    """`5 STS-B=10` as {every task: 5, "sts-b": 10}. Raises UserError for a word that is neither."""
    values: dict[str, float] = {}
    for word in sorted(words or [], key=lambda word: "=" in word):  # what is said of one task wins
        name, _, number = word.rpartition("=")
        try:
            value = convert(number)
        except ValueError:
            value = 0
        if not value > 0:
            raise UserError(f"{flag} {word}: give a number above 0 for all tasks, or TASK=NUMBER")
        values |= dict.fromkeys(paper.task_keys([name] if name else None), value)
    return values


def recipes(
    base: dict[str, Recipe], epochs: dict, rates: dict, steps: dict, lengths: dict, batches: dict
) -> tuple[dict[str, Recipe], dict[str, str]]:
    """The preset with the user's changes, and per task how a folder name tells them ("" for none)."""
    made, changed = {}, {}
    for task, recipe in base.items():
        told = ""
        if task in epochs:
            recipe, told = replace(recipe, epochs=epochs[task]), f"{told}-epochs{epochs[task]:g}"
        if task in steps:
            recipe = replace(recipe, epochs=1, steps_per_epoch=steps[task], by_steps=True)
            told = f"{told}-steps{steps[task]}"
        if task in rates:
            recipe, told = replace(recipe, rate=rates[task]), f"{told}-lr{rates[task]:g}"
        if task in lengths:
            recipe, told = replace(recipe, length=lengths[task]), f"{told}-length{lengths[task]}"
        if task in batches:
            recipe, told = replace(recipe, batch=batches[task]), f"{told}-batch{batches[task]}"
        made[task], changed[task] = recipe, told
    return made, changed


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("what", choices=list(BUILDERS), help="the table or figure")
    add(
        "--preset",
        choices=["paper", "mini"],
        default="paper",
        help="Table 1's hyper-parameters, or ours for a small model (200 steps a training)",
    )
    add(
        "--tasks", nargs="+", metavar="TASK", help="tasks to train on (default: the paper's eleven)"
    )
    add(
        "--sources",
        nargs="+",
        metavar="TASK",
        help="tasks whose masks are transferred (default: --tasks for figure2, MLM and SQuAD for figure_rewind)",
    )
    add(
        "--seeds",
        type=int,
        default=5,
        help="number of seeds, from 1 on (default: the paper's five)",
    )
    add(
        "--model",
        default="bert-base-uncased",
        help="hub name or local folder of the pre-trained BERT",
    )
    add(
        "--data",
        type=Path,
        default=Path("."),
        help="folder of glue_data, SQuAD and pretrain_data (get_data.py's)",
    )
    add("--out", type=Path, default=Path("runs"), help="folder for all output folders (ours)")
    add(
        "--epochs",
        nargs="+",
        metavar="N|TASK=N",
        help="epochs of a training, instead of the preset's (IMP's rounds then "
        "count the paper's steps per epoch: for data of another size give --steps)",
    )
    add("--lr", nargs="+", metavar="X|TASK=X", help="learning rate, instead of the preset's")
    add(
        "--steps",
        nargs="+",
        metavar="N|TASK=N",
        help="optimizer steps of a training, instead of epochs",
    )
    add(
        "--batch",
        nargs="+",
        metavar="N|TASK=N",
        help="training rows in a batch, instead of the preset's (with --steps)",
    )
    add(
        "--length",
        nargs="+",
        metavar="N|TASK=N",
        help="WordPieces of a row, window or block, instead of the preset's",
    )
    add(
        "--sparsity",
        nargs="+",
        metavar="S|TASK=S",
        help="sparsity to compare at, 0 to 1, instead of the paper's",
    )
    add(
        "--imp_to",
        type=float,
        default=HIGHEST / 100,
        metavar="S",
        help="where IMP's sparsities 0.1, 0.2, ... end",
    )
    add(
        "--shuffles",
        nargs="*",
        choices=SHUFFLES,
        default=["layers", "elements"],
        help="the kinds of shuffled weights in table2 (the released code shuffles layers)",
    )
    add("--flags", default="", help="words appended to every training command, such as '--bf16'")
    return parser.parse_args(argv)


def plan_of(args: argparse.Namespace) -> Plan:
    """The jobs that the flags ask for. Raises UserError naming a flag that cannot be."""
    if args.seeds < 1:
        raise UserError(f"--seeds {args.seeds}: give at least 1")
    sparsity = {
        task: _percent("--sparsity", s)
        for task, s in per_task("--sparsity", args.sparsity, float).items()
    }
    base = MINI if args.preset == "mini" else paper.RECIPES
    batches = per_task("--batch", args.batch, int)
    made, changed = recipes(
        base,
        per_task("--epochs", args.epochs, float),
        per_task("--lr", args.lr, float),
        per_task("--steps", args.steps, int),
        per_task("--length", args.length, int),
        batches,
    )
    tasks = paper.task_keys(args.tasks)
    sources = paper.task_keys(
        args.sources or (["MLM", "SQuAD"] if args.what == "figure_rewind" else args.tasks)
    )
    for task in sorted({*tasks, *sources} & batches.keys()):
        if not made[task].by_steps:  # an epoch has another number of steps then
            raise UserError(
                f"--batch {batches[task]}: give --steps for {paper.NAMES[task]} too, the length of a training"
            )
    wanted = Wanted(tasks, sources, tuple(range(1, args.seeds + 1)), sparsity, tuple(args.shuffles))
    folder = "-".join(
        filter(None, [Path(args.model).name, args.preset.replace("paper", ""), _slug(args.flags)])
    )
    plan = Plan(
        args.model,
        args.data,
        args.out / folder,
        made,
        changed,
        _percent("--imp_to", args.imp_to),
        shlex.split(args.flags),
    )
    BUILDERS[args.what](plan, wanted)
    return plan


def _percent(flag: str, sparsity: float) -> int:
    percent = round(100 * sparsity)
    if not 0 < sparsity < 1 or abs(percent - 100 * sparsity) > 1e-9:
        raise UserError(
            f"{flag} {sparsity:g} must be a whole percentage between 0 and 1, such as 0.7"
        )
    return percent


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")


def main(argv: list[str] | None = None) -> None:
    """Print the list."""
    words = sys.argv[1:] if argv is None else argv
    plan = plan_of(parse(argv))
    stages = plan.stages()
    print(f"# python experiments/plan.py {shlex.join(words)}")
    print(f"# {len(plan.jobs)} commands; a stage needs what the stages before it leave behind")
    for number, jobs in enumerate(stages, 1):
        print(f"# stage {number}")
        for job in jobs:
            print(shlex.join(job.words))


if __name__ == "__main__":
    command.run(main)
