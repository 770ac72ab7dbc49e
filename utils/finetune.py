"""Train and score one subnetwork or the dense model, as the paper scores its tickets."""

from pathlib import Path

from torch import nn

from utils import files, hub
from utils.errors import UserError
from utils.modeling import bert, saving
from utils.modeling.bert import BertTaskModel
from utils.pruning import mask_files, masks
from utils.pruning.origin import read_origin
from utils.runs.console import say
from utils.runs.evaluation import Evaluator, print_scores
from utils.runs.monitor import Monitor
from utils.runs.records import DENSE, MaskInfo
from utils.runs.run import Experiment, Run
from utils.runs.tickets import mask_of_model
from utils.training import distributed
from utils.training.optimizer import linear_schedule
from utils.training.order import DataOrder, seed_round
from utils.training.trainer import StepPlan, Trainer


def attach_mask(model: BertTaskModel, mask_file: str | None) -> MaskInfo:
    """Attach the mask in a file, or in a folder or hub repository of export_ticket.py, if any.

    Return its description. Raises UserError naming file and key.
    """
    if mask_file is None:
        return DENSE
    path = hub.local_folder(mask_file, files.PACKED_MASK, files.PACKED_MASK + files.ORIGIN_SUFFIX)
    mask = mask_files.load(path, masks.shapes(model))
    masks.attach(model, mask)
    digest = masks.digest(mask)
    origin, name = read_origin(path, digest), str(Path(mask_file))
    return MaskInfo(round(masks.sparsity(mask), 9), name, digest, origin)


def plan_steps(experiment: Experiment) -> StepPlan:
    """Plan a fine-tuning: the learning rate falls linearly to zero over its steps (Table 1)."""
    training = experiment.config.training
    order = DataOrder.from_config(experiment.task.train_rows, training, experiment.runtime)
    steps = order.total_steps(training.max_steps, training.num_train_epochs)
    rate = linear_schedule(training.learning_rate, steps, training.warmup_steps)
    return StepPlan(steps, rate, lambda step: order.batches(0, step))


def run(experiment: Experiment, plan: StepPlan, mask_info: MaskInfo) -> None:
    """Fine-tune in the output folder of the experiment, evaluate and print the scores."""
    training = experiment.config.training
    with Run.open(experiment) as run_:
        if run_.finished:
            return
        trainer, evaluator = experiment.trainer(), Evaluator(run_, "train")

        def evaluate(step: int) -> None:
            if not training.do_eval:
                return
            known = any(r.step == step and r.method == "train" for r in run_.records())
            if not distributed.broadcast(known):
                last = step == plan.steps
                evaluator.evaluate(step, mask_info, None, final=last, last=last)

        def save(step: int) -> None:
            save_model(run_, step)
            if training.eval_all_checkpoints:
                evaluate(step)

        during = training.logging_steps if training.evaluate_during_training else 0
        periodic = [(during, plan.evaluate_early, evaluate), (training.save_steps or 0, 0, save)]
        with Monitor(trainer, evaluator, plan.steps, periodic) as monitor:
            fine_tune(trainer, plan, monitor)
            if training.save_total_limit != 0:
                save_final(run_)
            evaluate(plan.steps)
        predict(run_)
        run_.finish()
        print_scores(experiment.task, run_.records())


def fine_tune(trainer: Trainer, plan: StepPlan, monitor: Monitor) -> None:
    """Train for the steps of `plan`, from the last checkpoint if there is one."""
    _, start = monitor.resume() or (0, 0)
    monitor.begin_round(0, 0, start)
    seed = trainer.config.order_seed
    if start == 0:
        seed_round(seed, 0, trainer.runtime.rank)
    trainer.train(plan, start, (seed, 0), monitor.after_step)
    monitor.read_losses()


def evaluate(experiment: Experiment, mask_info: MaskInfo = DENSE) -> None:
    """Evaluate the model given, or every model saved in the output folder, without training.

    --do_predict uses the last. Rows are added, none is replaced. Raises UserError if another
    process is writing to the output folder, or if every model of the run was removed.
    """
    nn.Module.to(experiment.model, experiment.runtime.device)
    do_eval = experiment.config.training.do_eval
    every = do_eval and experiment.config.training.eval_all_checkpoints
    folders = files.model_folders(Path(experiment.config.output.output_dir)) if every else []
    with_model = [folder for folder in folders if (folder / files.MODEL_FILES[0]).exists()]
    if folders and not with_model:
        raise UserError(
            f"--eval_all_checkpoints: no checkpoint-STEP in {folders[0].parent} has kept its model "
            "(--save_total_limit); leave the flag out to evaluate the model given"
        )
    if not with_model:
        bert.check_trained(experiment.model, experiment.config.model.config_source)
    with Run.open(experiment) as run_:
        earlier, evaluator = len(run_.records()), Evaluator(run_, "evaluate")
        for folder in with_model:
            bert.reload(experiment.model, str(folder))
            trained_with = mask_of_model(run_.path, folder) or mask_info
            step = files.model_folder_step(folder)
            evaluator.evaluate(step, trained_with, None, final=True, last=False)
        if do_eval and not with_model:
            evaluator.evaluate(0, mask_info, None, final=True, last=True)
        if do_eval:
            print_scores(experiment.task, run_.records()[earlier:])
        predict(run_)


def predict(run_: Run) -> None:
    """Write the predictions on the test sets that --do_predict asks for, if any."""
    experiment = run_.experiment
    for path in experiment.task.write_predictions(experiment.model, experiment.runtime, run_.path):
        say(f"wrote {path}")


def save_model(run_: Run, step: int) -> None:
    """Save the model in checkpoint-STEP; remove the oldest beyond --save_total_limit."""
    experiment, limit = run_.experiment, run_.experiment.config.training.save_total_limit
    if experiment.runtime.is_main:
        with files.atomic_folder(run_.path / files.model_folder_name(step)) as temporary:
            saving.save_pretrained(experiment.model, experiment.task.tokenizer, temporary)
        saved = files.model_folders(run_.path)
        surplus = 0 if limit is None else max(0, len(saved) - limit)
        for old in saved[:surplus]:
            files.remove(old)
    distributed.wait_for_main()


def save_final(run_: Run) -> None:
    """Save the trained model in the output folder itself, each file whole."""
    experiment = run_.experiment
    if experiment.runtime.is_main:
        staging = run_.path / files.model_folder_name(0)
        with files.atomic_folder(staging) as temporary:
            saving.save_pretrained(experiment.model, experiment.task.tokenizer, temporary)
        for file in staging.iterdir():
            file.replace(run_.path / file.name)
        staging.rmdir()
    distributed.wait_for_main()
