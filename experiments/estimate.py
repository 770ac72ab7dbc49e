"""Steps, time and disk of the commands in a list, from steps timed on this machine."""

import contextlib
import dataclasses
import importlib
import json
import platform
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from experiments import barriers, joblist
from utils import cli, files, finetune, imp
from utils.config import GlueConfig, SquadConfig, TextConfig, flag_values
from utils.errors import UserError
from utils.modeling.runtime import Runtime
from utils.pruning import masks
from utils.runs.console import format_duration, format_table
from utils.runs.run import THETA_0, Experiment, start_runtime
from utils.tasks.glue import GlueTask
from utils.tasks.mlm import MlmTask
from utils.tasks.squad import SquadTask
from utils.training.order import DataOrder

WARM_UP, STEPS, ROWS = 2, 4, 128  # optimizer steps before the timed ones, timed; evaluated rows
_TASKS: dict[type, Any] = {GlueConfig: GlueTask, SquadConfig: SquadTask, TextConfig: MlmTask}
_FLAGS = (  # of training, that change the time of a step or what is timed
    *("do_train", "do_eval", "per_gpu_train_batch_size", "gradient_accumulation_steps"),
    *("fp16", "bf16", "tf32", "compile", "no_cuda"),
)


def table(path: Path, start: float) -> str:
    """Return runs, steps, time one after another and disk, by stage, script and task.

    `start`: seconds in which a command imports its libraries. What was timed is kept in
    LIST.estimate.json. Raises UserError that names the line of a command that is not ours.
    """
    cache, timed = path.with_name(f"{path.name}.estimate.json"), {}
    with contextlib.suppress(OSError, ValueError):
        timed = json.loads(cache.read_text(encoding="utf-8"))
    jobs = [(job, _config(path, job)) for job in joblist.read(path)]
    for config in (config for _, config in jobs if hasattr(config, "training")):
        if _key(config) not in timed:
            timed[_key(config)] = measure(config)
            files.write_json(cache, timed)
    trainings = {job.output: config for job, config in jobs}
    weights = {found["model"]: found["weights"] for found in timed.values()}
    costs: dict[tuple[str, str, str], Any] = defaultdict(Counter)
    for job, config in jobs:
        task, script, stage = "", Path(job.script).name, f"{job.stage}"
        if hasattr(config, "training"):
            task, cost = timed[_key(config)]["task"], training_cost(config, timed[_key(config)])
        elif config is None:
            task, cost = _line_cost(trainings.get(Path(job.words[0])), timed)
        else:  # a mask of bool, or float32 weights
            size = weights.get(flag_values(config)["model_name_or_path"], 0)
            cost = Counter(bytes=size * (1 if script == "oneshot.py" else 4))
        cost.update(runs=1, seconds=start)
        for group in (stage, script, task), (stage, "all", ""), ("all", "all", ""):
            costs[group] += cost
    rows = []
    for group in sorted(costs, key=lambda group: (group[1] == "all", group[0] == "all")):
        cost = costs[group]
        spent, disk = format_duration(cost["seconds"]), f"{cost['bytes'] / 1e9:.2f} GB"
        rows.append([*group, f"{cost['runs']}", f"{cost['steps']:,}", spent, disk])
    return format_table(["stage", "command", "task", "runs", "steps", "time", "disk"], rows)


def _line_cost(training: Any, timed: dict[str, Any]) -> tuple[str, Any]:
    """Return task and cost of connectivity.py, if the training is in the list."""
    if training is None:
        return "", Counter()
    found = timed[_key(training)]
    return found["task"], Counter(seconds=found["load"] + barriers.POINTS * found["evaluation"])


def _config(path: Path, job: joblist.Job) -> Any:
    """Return the configuration of one of the seven scripts, None for connectivity.py."""
    script, where = Path(job.script), f"{path}, line {job.line}"
    if script.resolve() == joblist.ROOT / "experiments" / "connectivity.py":
        return None
    if script.resolve().parent != joblist.ROOT or not script.is_file():
        raise UserError(f"{where}: {script} is none of the seven scripts; take the line out")
    try:
        return cli.parse(importlib.import_module(script.stem).Config, None, job.words)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _key(config: Any) -> str:
    """Return what the times depend on: this machine, data, model and flags."""
    device = f"{platform.node()}, {torch.get_num_threads()} threads"
    if torch.cuda.is_available() and not config.training.no_cuda:
        device = torch.cuda.get_device_name()
    flags = {name: getattr(config.training, name) for name in _FLAGS}
    return json.dumps([device, flag_values(config.data), flag_values(config.model), flags])


def measure(config: Any) -> dict[str, Any]:
    """Load task and model as the command does; time optimizer steps and an evaluation."""
    load, training = _TASKS[type(config.data)].load, config.training
    began = time.monotonic()
    task = load(config.data, config.model, training, config.output)
    files.log.info(f"timing {task.name} with {config.model.model_name_or_path}")
    # another command makes the weights
    start = dataclasses.replace(getattr(config, "subnetwork", THETA_0), weight_pertub=None)
    experiment = Experiment.prepare(task, config, start_runtime(training), start)
    model, runtime = experiment.model, experiment.runtime
    masks.attach(model)
    trainer = experiment.trainer()
    found = {"task": task.name, "model": config.model.model_name_or_path, "rows": 1}
    found |= {"load": time.monotonic() - began, "step": 0.0, "evaluation": 0.0}
    found["weights"] = sum(keep.numel() for keep in masks.current(model).values())
    found["parameters"] = sum(each.numel() for each in model.parameters())
    if training.do_train:
        found["rows"] = task.train_rows
        order = DataOrder.from_config(task.train_rows, training, runtime)
        model.train()
        for step in range(WARM_UP + STEPS):
            began = time.monotonic() if step == WARM_UP else began
            loss, _ = trainer.step(order.batches(0, step), 0.0, (training.seed, 0, step))
            float(loss)  # waits for a GPU
        found["step"] = (time.monotonic() - began) / STEPS
    if training.do_eval:
        rows = config.data.max_eval_samples or ROWS
        few = dataclasses.replace(config.data, max_eval_samples=rows)
        alone = dataclasses.replace(training, do_train=False)
        part = load(few, config.model, alone, config.output)
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            part.evaluate(model, runtime, Path(folder), 0)
        found["evaluation"] = (time.monotonic() - began) * task.dev_rows / part.dev_rows
    return found


def training_cost(config: Any, found: dict[str, Any]) -> Any:
    """Return steps, seconds and bytes of a training, from what `measure` found."""
    training, limit = config.training, config.training.save_total_limit
    steps = saved = dropped = theta = 0
    task, runtime = SimpleNamespace(train_rows=found["rows"]), Runtime(torch.device("cpu"))
    experiment: Any = SimpleNamespace(task=task, config=config, runtime=runtime)
    if not training.do_train:
        evaluations, final = 1, 0
    elif getattr(config, "finds_tickets", hasattr(config, "imp")):
        schedule = imp.ImpSchedule.from_config(config.imp, experiment)
        schedule.check()
        evaluations = saved = schedule.rounds
        steps = sum(schedule.steps(each) - schedule.first_step(each) for each in range(saved))
        dropped, theta, final = min(saved, len(schedule.sparsities)), schedule.rewind_steps > 0, 0
    else:
        steps, final = finetune.plan_steps(experiment).steps, limit != 0
        saved = steps // training.save_steps if training.save_steps else 0
        evaluations = 1 + (saved if training.eval_all_checkpoints else 0)
    if training.evaluate_during_training and training.logging_steps:
        evaluations += steps // training.logging_steps
    seconds = found["load"] + steps * found["step"] + evaluations * found["evaluation"]
    models = (saved if limit is None else min(saved, limit)) + final + theta
    size = 4 * models * found["parameters"] + dropped * found["weights"]
    return Counter(steps=steps, seconds=seconds, bytes=size)
