"""A task's run in its output folder, as the scripts' mains share it: IMP, fine-tuning, or evaluation alone."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from utils import distributed, files, finetune, imp, masks, models, report, seeds
from utils.errors import UserError
from utils.report import Journal, say
from utils.run import Follower, Run
from utils.training import Recipe, Trainer
from utils.watch import Watch


@dataclass(frozen=True)
class Settings:
    """What the flags say of a run, beside the task's own: where it goes, how it trains, what it logs."""

    script: str
    output_dir: str
    arguments: dict  # every flag's value, for the results rows and to tell runs apart
    overwrite: bool
    insist: bool
    restart: bool
    recipe: Recipe
    device: torch.device
    seed: int
    logging_steps: int
    checkpoint_minutes: float
    evaluate: bool
    evaluate_during_training: bool
    evaluate_checkpoints: bool
    keep_models: int | None
    compiled: bool = False  # the encoder's layers, by torch.compile; on one GPU with recorded steps


class Evaluator:
    """Scores the model in training on its task and records the result."""

    def __init__(self, task, model: nn.Module, settings: Settings, journal: Journal):
        self.task, self.model, self.settings, self.journal = task, model, settings, journal

    def __call__(
        self, step: int, round_: int | None, mask_row: dict, final: bool, alone: bool = False
    ) -> float:
        """The score in percent points. `alone`: files of this evaluation have no step in their names, as released."""
        s, prefix = self.settings, "" if alone else str(step)
        metrics = self.task.evaluate(
            self.model, s.device, s.recipe.precision, self.journal.run.folder, prefix
        )
        row = self.journal.evaluation(
            step=step, round_=round_, mask=mask_row, metrics=metrics, final=final
        )
        return row["score"]


@contextlib.contextmanager
def _opened(settings: Settings, finds_tickets: bool) -> Iterator[Run | None]:
    """The run's folder, or None where the run is finished already."""
    s = settings
    with Run.open(
        s.output_dir, s.arguments, s.overwrite, s.insist, s.restart, finds_tickets
    ) as run:
        if run.finished:
            say(f"{s.output_dir}: this run is finished; give --overwrite_output_dir to do it anew")
            yield None
        else:
            yield run


def _journal(
    run: Run, settings: Settings, task, method: str, init: str, init_info: dict | None
) -> Journal:
    base = {
        "task": task.name,
        "script": settings.script,
        "method": method,
        "init": init,
        "init_info": init_info,
        "seed": settings.seed,
        "args": settings.arguments,
        "versions": report.versions(),
        "device": report.describe_device(settings.device),
    }
    return Journal(run, base, task.score_key, task.scale)


def _trainer(task, model: nn.Module, settings: Settings) -> Trainer:
    if settings.compiled:
        models.compile_layers(model)
    recorded = settings.compiled and settings.device.type == "cuda" and distributed.size() == 1
    return Trainer(model, task, settings.recipe, settings.device, recorded)


def run_imp(
    task,
    model: nn.Module,
    tokenizer,
    policy: imp.Policy,
    init: str,
    settings: Settings,
    as_released: bool,
) -> None:
    """Find tickets (Algorithm 1) in the output folder and print the table of rounds. `init`: what theta_0 is."""
    s, order = settings, _order(task, settings)
    with _opened(s, finds_tickets=True) as run:
        if run is None:
            return
        journal = _journal(run, s, task, "imp", init, None)
        trainer = _trainer(task, model, s)
        evaluate = Evaluator(task, model, s, journal) if s.evaluate else (lambda *_: None)
        tickets = imp.Tickets(
            run, policy, task.name, tokenizer, evaluate, task.score_key, as_released, s.keep_models
        )

        def within_round(step: int) -> None:
            if step % policy.round_steps:  # the end of a round is evaluated in any case
                tickets.score(step // policy.round_steps, step)

        every = s.logging_steps if s.evaluate and s.evaluate_during_training else 0
        steps = policy.rounds * policy.round_steps
        with Watch(
            trainer,
            run,
            journal,
            steps,
            s.logging_steps,
            s.checkpoint_minutes,
            [(every, within_round)],
        ) as watch:
            imp.find_tickets(trainer, policy, order, tickets, watch)
        run.finish()
        say(_table(task, [row for row in run.results() if row["final"]]))


def run_fine_tuning(
    task,
    model: nn.Module,
    tokenizer,
    ticket: finetune.Ticket,
    init: str,
    init_info: dict | None,
    total: int,
    planned: int,
    save_steps: int,
    settings: Settings,
) -> None:
    """Train the subnetwork in the output folder, evaluate it and print its score."""
    s, order = settings, _order(task, settings)
    with _opened(s, finds_tickets=False) as run:
        if run is None:
            return
        journal = _journal(run, s, task, "train", init, init_info)
        trainer = _trainer(task, model, s)
        evaluate = Evaluator(task, model, s, journal)
        during = s.logging_steps if s.evaluate and s.evaluate_during_training else 0

        def evaluate_once(step: int) -> None:
            if not distributed.from_first(
                any(row["step"] == step and row["method"] == "train" for row in run.results())
            ):
                evaluate(step, None, ticket.row, final=step == total, alone=step == total)

        def save(step: int) -> None:
            finetune.save_checkpoint(model, tokenizer, run.folder, step, s.keep_models)
            if s.evaluate and s.evaluate_checkpoints:
                evaluate_once(step)

        periodic = [(during, evaluate_once), (save_steps, save)]
        with Watch(
            trainer, run, journal, total, s.logging_steps, s.checkpoint_minutes, periodic
        ) as watch:
            finetune.fine_tune(trainer, total, planned, order, watch)
            if s.keep_models != 0:
                finetune.save_final(model, tokenizer, run.folder)
            if s.evaluate:
                evaluate_once(total)
        run.finish()
        say(_table(task, run.results()))


def run_evaluation(
    task,
    model: nn.Module,
    ticket: finetune.Ticket,
    init: str,
    init_info: dict | None,
    settings: Settings,
) -> None:
    """Evaluate the model given (or every checkpoint in the output folder) without training; adds rows, replaces none."""
    s = settings
    run = (Run if distributed.first() else Follower)(Path(s.output_dir), s.arguments)
    run.folder.mkdir(parents=True, exist_ok=True)
    journal = _journal(run, s, task, "evaluate", init, init_info)
    evaluate = Evaluator(task, model.to(s.device), s, journal)
    all_found = files.checkpoints(run.folder) if s.evaluate_checkpoints else []
    found = [
        folder for folder in all_found if (folder / files.MODEL_FILES[0]).exists()
    ]  # --save_total_limit removes models
    if all_found and not found:
        raise UserError(
            f"--eval_all_checkpoints: no checkpoint in {run.folder} has kept its model (--save_total_limit); "
            "leave the flag out to evaluate the model given"
        )
    before = len(run.results())
    for folder in found:
        step = int(folder.name.rpartition("-")[2])
        models.reload(model, str(folder))
        evaluate(step, None, imp.trained_mask(run.folder, folder) or ticket.row, True)
    if not found:
        evaluate(0, None, ticket.row, final=True, alone=True)
    journal.close()
    say(_table(task, run.results()[before:]))


def _order(task, settings: Settings) -> seeds.Order:
    r = settings.recipe
    return seeds.Order(task.train_rows, r.batch_size, r.accumulation, settings.seed)


def _table(task, rows: list[dict]) -> str:
    columns = task.columns or (rows[0]["metrics"] if rows else [task.score_key])
    header = ["round", "step", "sparsity", *columns]
    cells = [
        [
            str(row["round"] or "-"),
            str(row["step"]),
            f"{row['sparsity']:.1%}",
            *(_figure(row["metrics"].get(key)) for key in header[3:]),
        ]
        for row in rows
    ]
    return report.table(header, cells)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def load_ticket(model: nn.Module, mask_file: str | None) -> finetune.Ticket:
    """Read the mask file and attach its mask to the model; no file, no mask. Raises UserError naming file and key."""
    if mask_file is None:
        return finetune.Ticket(finetune.describe_mask(None, None, None), None)
    path, info = Path(mask_file), models.read_info(Path(mask_file))
    shapes = {name: module.weight.shape for name, module in masks.prunable(model).items()}
    mask = masks.load(path, shapes)
    masks.attach(model, mask)
    row = finetune.describe_mask(path, mask, info)
    if info and info.get("mask_sha256", row["mask_sha256"]) != row["mask_sha256"]:
        print(
            f"warning: {path}: the .json beside it tells of another mask; where this one comes from is not known",
            file=sys.stderr,
        )
        row["mask_info"] = None
    return finetune.Ticket(row, mask)
