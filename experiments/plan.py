"""Print the commands behind a table or figure of the paper, one per line, in runnable order."""

if __name__ == "__main__":
    import _root  # noqa: F401

import argparse
import itertools
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments import paper
from experiments.command_list import IMP_END, CommandList, Tensors, sparsities
from experiments.paper import Hyperparameters
from utils import cli, files
from utils.errors import UserError

_MINI = Hyperparameters(  # ours: for a small BERT and small data, minutes on a laptop
    learning_rate=5e-4, epochs=1, steps_per_epoch=200, batch_size=16, length=64, by_steps=True
)
MINI = dict.fromkeys(paper.NAMES, _MINI) | {"squad": replace(_MINI, length=128, stride=32)}


@dataclass(frozen=True)
class Request:
    """What a table or figure is built for."""

    runs: list[tuple[str, int]]  # every task with every seed
    sources: tuple[str, ...]  # tasks that find the masks
    sparsity: dict[str, int]  # task -> percent at which to compare
    shuffles: list[str]  # modes of pertub_weight.py
    percents: list[int]  # sparsities of tickets in `connectivity`; 0: the full network
    controls: str = "none"  # masks with a ticket's layer-wise sparsities: a choice of --controls


def table2(commands: CommandList, request: Request) -> None:
    """Full network, IMP to its end; at the paper's sparsity the ticket, OMP and the controls."""
    for task, seed in request.runs:
        percent = request.sparsity[task]
        commands.train(task, seed)
        ticket = commands.ticket(task, seed, percent)
        commands.train(task, seed, ticket)
        commands.train(task, seed, commands.one_shot(percent, "random", seed))
        commands.train(task, seed, ticket, init="rand")
        for mode in request.shuffles:
            commands.train(task, seed, ticket, init=commands.perturbed(mode, seed))
        commands.train(task, seed, commands.one_shot(percent))
        if request.controls in ("layerwise", "all"):
            commands.train(task, seed, commands.one_shot(percent, "layerwise"))
        if request.controls in ("shuffle", "all"):
            commands.train(task, seed, commands.shuffled(ticket, seed))


def table3(commands: CommandList, request: Request) -> None:
    """IMP to the paper's sparsity, rewinding to 0, 5, 10, 20 and 50 %, and without rewinding."""
    for task, seed in request.runs:
        percent = request.sparsity[task]
        commands.train(task, seed)
        commands.train(task, seed, commands.ticket(task, seed, percent))
        for rewind in (*paper.REWINDS, None):
            commands.imp(task, seed, percent, rewind)


def table4(commands: CommandList, request: Request) -> None:
    """Full network, IMP to its end, and the ticket at the paper's strict sparsity."""
    for task, seed in request.runs:
        commands.train(task, seed)
        commands.train(task, seed, commands.ticket(task, seed, request.sparsity[task]))


def figure2(commands: CommandList, request: Request) -> None:
    """The 70 % masks of every source, and OMP's, trained on every target."""
    for task, seed in request.runs:
        commands.train(task, seed)
        for source in request.sources:
            commands.train(task, seed, commands.ticket(source, seed, request.sparsity[source]))
        commands.train(task, seed, commands.one_shot(request.sparsity[task]))


def figure_rewind(commands: CommandList, request: Request) -> None:
    """The sources' 70 % subnetworks, rewound to theta_i, on every target (section 4, Q3)."""
    for task, seed in request.runs:
        commands.train(task, seed)
        for source in request.sources:
            percent = request.sparsity[source]
            commands.train(task, seed, commands.ticket(source, seed, percent))
            for rewind in paper.REWINDS:
                mask = commands.ticket(source, seed, percent, rewind)
                file = mask.command.output / files.REWIND_WEIGHTS
                theta_i = Tensors("rewound", file, mask.command)
                commands.train(task, seed, mask, init=theta_i)


def figure_overlap(commands: CommandList, request: Request) -> None:
    """Masks alone: IMP on every task, and OMP at every sparsity."""
    for task, seed in request.runs:
        commands.ticket(task, seed, request.sparsity[task])
    for percent in sparsities(commands.imp_end):
        commands.one_shot(percent)


def figure_sparsity(commands: CommandList, request: Request) -> None:
    """IMP's rounds, and OMP and random masks at each of their sparsities."""
    for task, seed in request.runs:
        commands.train(task, seed)
        commands.imp(task, seed)
        for percent in sparsities(commands.imp_end):
            commands.train(task, seed, commands.one_shot(percent))
            commands.train(task, seed, commands.one_shot(percent, "random", seed))


def connectivity(commands: CommandList, request: Request) -> None:
    """Tickets trained with two data orders, and the line between their weights (ours)."""
    for (task, seed), percent in itertools.product(request.runs, request.percents):
        ticket = commands.ticket(task, seed, percent) if percent else None
        pair = [commands.train(task, seed, ticket, data_seed=order) for order in (1, 2)]
        commands.connect(*pair)


_TABLES = (table2, table3, table4)
_FIGURES = (figure2, figure_rewind, figure_overlap, figure_sparsity, connectivity)
SEEDS, LARGEST = 1000, 10**7  # the most seeds; no number of a flag is larger
BUILDERS = {builder.__name__: builder for builder in (*_TABLES, *_FIGURES)}
ONLY = {"shuffles": "table2", "controls": "table2", "sparsities": "connectivity"}  # flag -> what
# flag -> field, the type of its value, help; folder names show the changes in this order
CHANGES: dict[str, tuple[str, Callable[[str], float], str]] = {
    "epochs": ("epochs", float, "epochs of a training, for data of the paper's size"),
    "steps": ("steps_per_epoch", int, "steps of a training, instead of epochs, for other data"),
    "lr": ("learning_rate", float, "learning rate"),
    "length": ("length", int, "WordPieces of a row, window or block"),
    "batch": ("batch_size", int, "training rows in a batch (needs --steps)"),
}


def per_task(
    flag: str, words: list[str] | None, convert: Callable[[str], float]
) -> dict[str, float]:
    """Return `5 STS-B=10` as {every task: 5, "sts-b": 10}. Raises UserError for other words."""
    values: dict[str, float] = {}
    for word in sorted(words or [], key=lambda word: "=" in word):  # a task's own number wins
        name, _, number = word.rpartition("=")
        try:
            value = convert(number)
        except ValueError:
            value = 0
        if not 0 < value <= LARGEST:
            numbers = f"a number above 0, at most {LARGEST:,}"
            raise UserError(f"{flag} {word}: give {numbers}, for all tasks, or TASK=NUMBER")
        values |= dict.fromkeys(paper.task_keys([name] if name else None), value)
    return values


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.OneLineParser(__doc__)
    add = parser.add_argument
    add("what", help=f"{', '.join(BUILDERS)}; with --estimate, the file of a list")
    text = "print the steps, time and disk of a list instead, from a few steps of each task"
    add("--estimate", action="store_true", help=f"{text}, timed on this machine")
    text = "Table 1's hyper-parameters, or ours for a small model (200 steps per training)"
    add("--preset", choices=["paper", "mini"], default="paper", help=text)
    text = "tasks to train on (default: all, the paper's 11)"
    add("--tasks", nargs="+", metavar="TASK", help=text)
    text = "tasks that find the masks (default: --tasks; for figure_rewind MLM and SQuAD)"
    add("--sources", nargs="+", metavar="TASK", help=text)
    add("--seeds", type=int, default=5, help="number of seeds, from 1 on")
    text = "number of IMP runs per task, from seed 1 on, that all seeds share (default: --seeds)"
    add("--mask_seeds", type=int, metavar="N", help=text)
    text = "hub name or local folder of the pre-trained BERT"
    add("--model", default="bert-base-uncased", help=text)
    text = "folder with glue_data, SQuAD and pretrain_data; left out, the data come from the hub"
    add("--data", type=Path, help=text)
    add("--out", type=Path, default=Path("runs"), help="folder for all output folders (ours)")
    for flag, (_, _, text) in CHANGES.items():
        add(f"--{flag}", nargs="+", metavar="N|TASK=N", help=f"{text} (default: the preset's)")
    text = "sparsity at which to compare, 0 to 1 (default: the paper's)"
    add("--sparsity", nargs="+", metavar="S|TASK=S", help=text)
    text = "the last of IMP's sparsities 0.1, 0.2, ..."
    add("--imp_to", type=float, default=IMP_END / 100, metavar="S", help=text)
    text = "kinds of shuffled weights in table2 (the released code shuffles layers)"
    modes = ["layers", "elements", "noise"]
    add("--shuffles", nargs="*", choices=modes, default=modes[:2], help=text)
    text = "words appended to every training command, as in --flags=--bf16"
    add("--flags", default="", help=text)
    text = "sparsities of the tickets in connectivity; 0: the full network (ours)"
    add("--sparsities", nargs="+", type=float, metavar="S", default=[0, 0.3, 0.5, 0.7], help=text)
    text = "controls in table2 with a ticket's layer-wise sparsities: masks of oneshot.py (ours)"
    add("--controls", choices=["none", "layerwise", "shuffle", "all"], default="none", help=text)
    args = parser.parse_args(argv)
    for flag, what in ONLY.items():
        other = args.what in BUILDERS.keys() - {what}
        if other and getattr(args, flag) != parser.get_default(flag):
            files.warn(f"--{flag} has no effect on {args.what}, only on {what}")
    return args


def _check(args: argparse.Namespace) -> None:
    if not 1 <= args.seeds <= SEEDS:
        raise UserError(f"--seeds {args.seeds}: give a number from 1 to {SEEDS}")
    if args.mask_seeds is not None and not 1 <= args.mask_seeds <= args.seeds:
        raise UserError(f"--mask_seeds {args.mask_seeds}: give a number from 1 to --seeds")
    if args.what == "connectivity" and re.search(r"--save_total_limit[= ]+0\b", args.flags):
        raise UserError("--flags --save_total_limit: connectivity needs the models; leave it out")


def command_list(args: argparse.Namespace) -> CommandList:
    """Return the commands that the flags request. Raises UserError for a bad value of a flag."""
    _check(args)
    tasks = paper.task_keys(args.tasks)
    rewound = ["MLM", "SQuAD"] if args.what == "figure_rewind" else args.tasks
    sources = paper.task_keys(args.sources or rewound)
    sparsity = dict.fromkeys(paper.NAMES, paper.TRANSFER_SPARSITY)
    if args.what in ("table2", "table3", "table4"):
        theirs = paper.STRICT_SPARSITY if args.what == "table4" else paper.SPARSITY
        sparsity = theirs | paper.OWN_SPARSITY
    for task, value in per_task("--sparsity", args.sparsity, float).items():
        sparsity = sparsity | {task: _percent("--sparsity", value)}

    mini = args.preset == "mini"
    settings, names = dict(MINI if mini else paper.HYPERPARAMETERS), dict(paper.NAMES)
    for flag, (field, convert, _) in CHANGES.items():
        for task, value in per_task(f"--{flag}", getattr(args, flag), convert).items():
            changes: dict[str, Any] = {field: value}
            if flag == "steps":
                changes |= {"epochs": 1, "by_steps": True}
            settings[task] = replace(settings[task], **changes)
            names[task] += f"-{flag}{value:g}" if convert is float else f"-{flag}{value}"
    for task in sorted({*tasks, *sources}):  # another batch size changes the steps per epoch
        if "-batch" in names[task] and not settings[task].by_steps:
            name = paper.NAMES[task]
            raise UserError(f"--batch: give --steps for {name} too, the length of a training")

    flags_name = re.sub(r"[^A-Za-z0-9.]+", "-", args.flags).strip("-")
    model = os.path.basename(os.path.abspath(args.model))  # of "..": the folder's own name
    folder = "-".join(filter(None, [model, "mini" if mini else "", flags_name]))
    commands = CommandList(
        model=args.model,
        data=args.data,
        out=args.out / folder,
        hyperparameters=settings,
        names=names,
        imp_end=_percent("--imp_to", args.imp_to),
        flags=_split("--flags", args.flags),
        mask_seeds=args.mask_seeds or 0,
    )
    runs = list(itertools.product(tasks, range(1, args.seeds + 1)))
    percents = [_percent("--sparsities", each) if each else 0 for each in args.sparsities]
    request = Request(runs, sources, sparsity, args.shuffles, percents, args.controls)
    BUILDERS[args.what](commands, request)
    return commands


def _percent(flag: str, sparsity: float) -> int:
    percent = round(100 * sparsity) if 0 < sparsity < 1 else 0
    if not percent or abs(percent - 100 * sparsity) > 1e-9:
        raise UserError(f"{flag} {sparsity:g}: give a whole percentage between 0 and 1, as in 0.7")
    return percent


def _split(flag: str, words: str) -> list[str]:
    try:
        return shlex.split(words)
    except ValueError as error:
        raise UserError(f"{flag} {words}: {error}; correct the quotes") from error


def main(argv: list[str] | None = None) -> None:
    """Print the list."""
    words = sys.argv[1:] if argv is None else argv
    for word in words:
        if word.encode("utf-8", "replace").decode().splitlines() not in ([], [word]):
            raise UserError(
                f"{word!a}: a list holds UTF-8 text, a command a line; give other words"
            )
    args, began = parse(words), time.monotonic()
    if args.estimate:
        from experiments import estimate  # imports what a command of the list imports

        print(estimate.table(Path(args.what), time.monotonic() - began))
        return
    if args.what not in BUILDERS:
        known = ", ".join(BUILDERS)
        raise UserError(f"argument what: {args.what!r} is none of {known}; give one of them")
    commands = command_list(args)
    print(f"# python experiments/plan.py {shlex.join(words)}")
    count = len(commands.commands)
    print(f"# {count} commands; a stage needs what the stages before it leave behind")
    for number, stage in enumerate(commands.stages(), 1):
        print(f"# stage {number}", *(shlex.join(command.words) for command in stage), sep="\n")


if __name__ == "__main__":
    cli.run(main)
