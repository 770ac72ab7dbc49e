"""The released variants of tasks, schedule and optimizer, on single batches, rounds and steps."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import tiny
import torch
from released_replay import LiteralAdamW
from small_tasks import (
    RUNTIME,
    TRAINING,
    assert_close_gradients,
    gradients,
    load_task,
    make_data,
    masked_model,
    training,
)
from transformers import BertForQuestionAnswering, BertForSequenceClassification

from benchmarks import baseline
from utils import released
from utils.config import GlueConfig, ImpConfig, ModelConfig, OutputConfig, RunConfig, SquadConfig
from utils.data.rows import batches_by_length
from utils.data.squad import SquadExample
from utils.errors import UserError
from utils.imp import SPARSITIES, ImpSchedule
from utils.modeling.bert import load_model
from utils.pruning import masks
from utils.runs.run import Experiment
from utils.tasks.glue import GlueTask
from utils.tasks.squad import SquadTask
from utils.tasks.squad_answers import squad_metrics
from utils.training import trainer
from utils.training.order import DataOrder
from utils.training.trainer import StepPlan, Trainer

LENGTH = 48
OUTPUT = OutputConfig(output_dir="out")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("released"))


@dataclass(frozen=True, kw_only=True)
class Flags(RunConfig):
    data: GlueConfig
    imp: ImpConfig


def apply(task, sparsities=None):
    """Apply the released rules to an experiment on `task`."""
    flags = Flags(
        data=GlueConfig("MRPC", "", LENGTH),
        model=ModelConfig(),
        training=dataclasses.replace(TRAINING, per_gpu_eval_batch_size=3),
        output=OUTPUT,
        imp=ImpConfig(sparsities=sparsities),
    )
    return released.apply(Experiment(task=task, model=None, config=flags, runtime=RUNTIME))


# ---- batches


def load_golden(assets, name, cache):
    """Load a task of the reference; return it with its class and its batches in transformers."""
    model = ModelConfig(model_name_or_path=str(assets / "model"), cache_dir=str(cache))
    training = dataclasses.replace(TRAINING, do_eval=False)
    if name != "squad":
        data = GlueConfig(name, str(assets / "glue" / name), LENGTH, True)
        task = GlueTask.load(data, model, training, OUTPUT)
        return task, BertForSequenceClassification, baseline.glue_batch
    data = SquadConfig(
        train_file=str(assets / "squad" / "train-v1.1.json"),
        max_seq_length=LENGTH,
        doc_stride=16,
        max_query_length=12,
        do_lower_case=True,
        threads=1,
    )
    task = SquadTask.load(data, model, training, OUTPUT)
    return task, BertForQuestionAnswering, baseline.squad_batch


@pytest.mark.parametrize("name", ["MRPC", "STS-B", "squad"])
def test_a_batch_has_the_loss_and_gradients_of_transformers_to_the_last_bit(
    golden, tmp_path, monkeypatch, name
):
    source, rows = golden / "assets" / "model", np.arange(24)
    paper, reference, make_batch = load_golden(golden / "assets", name, tmp_path)
    task, labels = apply(paper).task, paper.bert_config.num_labels
    batch = make_batch(task.train, rows, LENGTH)
    assert len(set(batch["attention_mask"].sum(1).tolist())) > 1
    model = load_model(task.model_class, str(source), task.bert_config, 57)
    theirs = reference.from_pretrained(source, num_labels=labels, attn_implementation="sdpa")
    names = theirs.state_dict().keys()
    theirs.load_state_dict({k: v for k, v in model.state_dict().items() if k in names})
    found = task.loss(model.train(), task.train_batch(rows, 0, RUNTIME))
    expected = theirs.train()(**batch).loss
    found.backward()
    expected.backward()
    assert found.item() == expected.item()
    ours = {name: p.grad for name, p in model.named_parameters()}
    assert [n for n, p in theirs.named_parameters() if not torch.equal(p.grad, ours[n])] == []
    monkeypatch.setattr(trainer, "ACTIVATION_BYTES", 1)  # micro-batches would round differently
    parts = Trainer(model, task, TRAINING, RUNTIME).micro_batches([rows])
    assert [len(part) for _, part, _ in parts] == [24]


def test_rows_are_padded_to_one_length(folder):
    paper, rows = load_task(folder, "MRPC"), np.arange(16)
    lengths = paper.train.rows.lengths(rows)
    assert lengths.max() < LENGTH and len(set(lengths)) > 3
    packed = apply(paper).task.train_batch(rows, 0, RUNTIME).packed
    assert (packed.width, packed.full) == (LENGTH, False)
    assert packed.lengths.tolist() == lengths.tolist()
    for row, ids in enumerate(packed.ids.view(len(rows), LENGTH)):
        assert ids[: lengths[row]].tolist() == paper.train.rows[row][0].tolist()
        assert not ids[lengths[row] :].any()
    full = baseline.make_rows([[1] * 4, [2] * 4], [[0] * 4] * 2)
    assert released.pack_padded(full, np.arange(2), 4).full


# ---- evaluation


def test_evaluation_batches_are_sized_by_the_padded_length():
    lengths = [3, 40, 7, 12, 40, 5]
    rows = baseline.make_rows([[1] * n for n in lengths], [[0] * n for n in lengths])
    batches = batches_by_length(rows, 2048)
    assert [batch.tolist() for batch in batches] == [[1, 4], [3, 2], [5, 0]]
    assert [len(batch) for batch in batches_by_length(rows, 5000)] == [1] * 6


def test_glue_logits_are_those_of_packed_rows(folder):
    paper = load_task(folder, "MRPC")
    model, rows = masked_model(folder, paper), paper.dev["dev"].rows
    found, expected = (t.predict(model, rows, RUNTIME) for t in (apply(paper).task, paper))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_squad_logits_are_those_of_packed_windows_and_of_their_padding(folder):
    paper = load_task(folder, "squad")
    model, rows = masked_model(folder, paper), paper.dev[1].rows
    found, expected = (t.predict(model, rows, RUNTIME) for t in (apply(paper).task, paper))
    assert found.shape == expected.shape == (len(rows), LENGTH, 2)
    assert np.isfinite(found).all() and not np.isfinite(expected).all()
    for window, length in enumerate(rows.lengths()):
        np.testing.assert_allclose(found[window, :length], expected[window, :length], atol=1e-5)


def test_the_mismatched_result_of_mnli_replaces_the_matched_one(tmp_path):
    source, data = tiny.bert(tmp_path / "bert"), tiny.glue(tmp_path / "MNLI", "MNLI", dev=40)
    model = ModelConfig(model_name_or_path=str(source))
    paper = GlueTask.load(GlueConfig("MNLI", str(data), LENGTH, True), model, TRAINING, OUTPUT)
    model = load_model(paper.model_class, str(source), paper.bert_config, 1)
    found, expected = (
        t.evaluate(model, RUNTIME, tmp_path, None) for t in (apply(paper).task, paper)
    )
    assert expected["acc"] != expected["acc_mm"]
    assert found == {"acc": expected["acc_mm"]}


def test_mlm_evaluations_draw_new_masks_and_weight_batches_by_all_tokens(folder, tmp_path):
    paper = load_task(folder, "mlm")
    task, model = apply(paper).task, masked_model(folder, paper)

    def hidden(task, step):
        batches = list(task._evaluation_batches(RUNTIME, step))
        return torch.cat([batch.packed.ids[0] for batch in batches]), batches

    assert torch.equal(hidden(task, 5)[0], hidden(task, 5)[0])
    assert not torch.equal(hidden(task, 5)[0], hidden(task, 6)[0])
    assert torch.equal(hidden(paper, 5)[0], hidden(paper, 6)[0])
    assert torch.equal(hidden(paper, 5)[0], hidden(task, None)[0])
    batches = hidden(task, 5)[1]
    assert {len(batch.packed.lengths) for batch in batches[:-1]} == {3}
    metrics = task.evaluate(model, RUNTIME, tmp_path, 5)
    weighted = tokens = 0
    losses = []
    with torch.no_grad():
        for batch in batches:
            logits = task.logits(model, batch)
            losses.append(float(torch.nn.functional.cross_entropy(logits, batch.targets)))
            hits = int((logits.argmax(-1) == batch.targets).sum())
            size = batch.packed.ids.numel()
            weighted += hits / max(1, len(batch.targets)) * size
            tokens += size
    assert metrics["accuracy"] == pytest.approx(weighted / tokens, rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(np.exp(np.nanmean(losses)), rel=1e-5)


def test_the_v2_rules_score_answers_of_v1_files_too():
    examples = [SquadExample("q", "?", "the end", (("the", 0),))]
    v1, v2 = (
        squad_metrics(examples, {"q": "a"}, config)
        for config in (SquadConfig(), released.squad_config(SquadConfig()))
    )
    assert (v1["exact"], v1["f1"]) == (100.0, 0.0)  # both normalize to nothing
    assert (v2["exact"], v2["f1"]) == (100.0, 100.0)


# ---- rounds


def paper_schedule(**changes):
    order = DataOrder(40, 8, 1, 7)  # 5 steps an epoch
    fields = {"sparsities": SPARSITIES, "round_steps": 4, "total_steps": 40, "training": TRAINING}
    return ImpSchedule(order=order, **{**fields, **changes})


def rows_of(schedule, round_):
    """The training rows of each step of a round."""
    plan = schedule.plan(round_)
    return [np.concatenate(plan.batches(step)).tolist() for step in range(plan.steps)]


@pytest.mark.parametrize("name", ["MRPC", "squad", "mlm"])
def test_learning_rate_and_data_order_continue_over_the_rounds(folder, name):
    paper = paper_schedule()
    schedule = released.schedule(paper, apply(load_task(folder, name)))
    schedule.check()
    short = name == "squad"
    assert schedule.rounds == (9 if name == "mlm" else 10)
    assert [schedule.steps(round_) for round_ in range(3)] == [4 - short, 4, 4]
    for round_ in range(3):
        plan = schedule.plan(round_)
        rates = [plan.learning_rate(step) for step in range(plan.steps)]
        expected = [1e-3 * (40 - step) / 40 for step in range(plan.steps)]
        assert rates == pytest.approx(expected, rel=1e-12)
    continued = [np.concatenate(paper.order.batches(0, step)).tolist() for step in range(11)]
    taken = [rows for round_ in range(3) for rows in rows_of(schedule, round_)]
    assert taken[:11] == continued
    assert rows_of(paper, 1) != rows_of(schedule, 1)


@pytest.mark.parametrize("name, total", [("MRPC", 15), ("squad", 15), ("mlm", 40)])
def test_glue_and_squad_keep_the_epochs_learning_rate_with_max_steps(folder, name, total):
    limited = dataclasses.replace(TRAINING, max_steps=40, num_train_epochs=3.0)  # 5 steps each
    schedule = released.schedule(paper_schedule(training=limited), apply(load_task(folder, name)))
    rates = [schedule.plan(0).learning_rate(step) for step in range(3)]
    assert rates == pytest.approx([1e-3 * (total - step) / total for step in range(3)], rel=1e-12)


@pytest.mark.parametrize("accumulation, rows", [(1, 40), (2, 40), (3, 58), (4, 60), (9, 40)])
def test_batches_that_fill_no_step_are_carried_into_the_next_epoch(accumulation, rows):
    order = released.ReleasedOrder(rows, 8, accumulation, 7)
    steps, pending = [], []  # as the released loop: gradients stay until a step is taken
    for epoch in range(3):
        batches = order.split(order.permutation(0, epoch))
        for number, batch in enumerate(batches, 1):
            pending.append(batch.tolist())
            if number % min(accumulation, len(batches)) == 0:
                steps.append(pending)
                pending = []
    found = [[batch.tolist() for batch in order.batches(0, step)] for step in range(len(steps))]
    assert found == steps
    assert (len(steps[order.steps_per_epoch]) > accumulation) == (accumulation in (2, 3))


def test_carried_batches_count_as_one_more_gradient(folder):
    task, config = load_task(folder, "MRPC"), training(gradient_accumulation_steps=2)
    batches = [np.arange(5), np.arange(5, 12), np.arange(12, 16)]
    model = masked_model(folder, task).eval()
    expected = []
    for rows in batches:
        model.zero_grad()
        (task.loss(model, task.train_batch(rows, 0, RUNTIME)) / 2).backward()
        expected.append(gradients(model))
    Trainer(model, task, dataclasses.replace(config, max_grad_norm=1e9), RUNTIME).step(
        batches, 0.0, (1, 0, 0)
    )
    total = {name: sum(each[name] for each in expected) for name in expected[0]}
    assert_close_gradients(gradients(model), total, 1e-5)


def test_the_global_generators_are_seeded_once(folder):
    schedule = released.schedule(paper_schedule(), apply(load_task(folder, "MRPC")))
    schedule.seed_generators(0, 0)
    first = torch.rand(1)
    schedule.seed_generators(1, 0)
    assert torch.rand(1) != first
    schedule.seed_generators(0, 0)
    assert torch.rand(1) == first


def test_the_last_prune_reaches_100_percent_unless_sparsities_are_given(folder):
    task = load_task(folder, "MRPC")
    schedule = released.schedule(paper_schedule(), apply(task))
    targets = [schedule.target(round_) for round_ in range(11)]
    assert targets == [*SPARSITIES, 1.0, None]
    schedule = released.schedule(paper_schedule(), apply(task, SPARSITIES))
    assert schedule.sparsities == SPARSITIES and schedule.rounds == 9


def test_mlm_prunes_theta_0_first_and_never_rewinds(folder):
    task = load_task(folder, "mlm")
    schedule = released.schedule(paper_schedule(rewinds=False), apply(task))
    model = masked_model(folder, task, 0.0)
    assert schedule.prune_before(model) == 0.1
    assert masks.sparsity(masks.current(model)) == pytest.approx(0.1, abs=1e-4)
    assert [schedule.target(round_) for round_ in (0, 8, 9)] == [0.2, 1.0, None]
    assert moved(schedule, model) == set()
    assert (schedule.origin("mlm", 0.1).rewind, schedule.origin("mlm", 0.1).as_released) == (
        "none",
        True,
    )
    with pytest.raises(UserError, match="give at least two"):
        dataclasses.replace(schedule, sparsities=(0.5,)).check()


def test_a_rewind_restores_the_encoder_and_not_the_head(folder):
    task = load_task(folder, "MRPC")
    schedule = released.schedule(paper_schedule(), apply(task))
    model = masked_model(folder, task)
    assert schedule.prune_before(model) == 0.0
    names = set(masks.snapshot(model))
    assert moved(schedule, model) == {name for name in names if name.startswith("bert.")} != names
    assert schedule.origin("mrpc", 0.1).rewind == "encoder"
    with pytest.raises(UserError, match="--as_released rewinds"):
        released.schedule(paper_schedule(rewinds=False), apply(task))


def moved(schedule, model):
    """The names of the parameters that a rewind to zeros changes."""
    before = masks.snapshot(model)
    for value in before.values():
        value.add_(1)
    schedule.rewind(model, before)
    return {
        name for name, value in masks.snapshot(model).items() if torch.equal(value, before[name])
    }


@pytest.mark.parametrize("name, steps", [("MRPC", 6), ("mlm", 6), ("squad", 5)])
def test_max_steps_is_one_more_in_fine_tuning_of_glue_and_mlm(folder, name, steps):
    experiment, plan = (
        apply(load_task(folder, name)),
        StepPlan(5, lambda step: 0.0, lambda step: []),
    )
    for limit, expected in ((5, steps), (-1, 5)):
        limited = dataclasses.replace(TRAINING, max_steps=limit)
        config = dataclasses.replace(experiment.config, training=limited)
        found = released.plan(plan, dataclasses.replace(experiment, config=config))
        assert (found.steps, found.evaluate_early) == (expected, name == "squad")
        assert (found.learning_rate(0) == 0.0) == (name != "squad")


# ---- the optimizer


class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.dense = torch.nn.Linear(50, 40, dtype=torch.float64)
            self.LayerNorm = torch.nn.LayerNorm(40, dtype=torch.float64)


def set_gradients(model, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = scale * torch.randn(p.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scale", [1e-8, 1e-6, 1.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_optimizer_rounds_as_the_released_operations(folder, scale, weight_decay):
    ours, theirs = Layers(), Layers()
    optimizer_class = apply(load_task(folder, "MRPC")).optimizer_class
    config = dataclasses.replace(TRAINING, weight_decay=weight_decay)
    optimizer = optimizer_class(ours, config)
    literal = LiteralAdamW(list(theirs.parameters()), config.adam_epsilon)
    decays = [weight_decay * (name == "dense.weight") for name, _ in theirs.named_parameters()]
    for number in range(20):
        rate = 1e-3 * (1 - number / 20)
        set_gradients(ours, scale, number)
        set_gradients(theirs, scale, number)
        optimizer.set_lr(rate)
        optimizer.step()
        literal.step(rate, decays)
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    assert all(torch.equal(found, expected) for found, expected in pairs)


def test_the_optimizer_continues_from_a_checkpoint():
    config = dataclasses.replace(TRAINING, weight_decay=0.1)
    undisturbed, resumed = Layers(), Layers()
    optimizers = [released.SingleOperationAdamW(each, config) for each in (undisturbed, resumed)]
    for number in range(6):
        if number == 3:
            state, steps = optimizers[1].state_dict(), optimizers[1].steps
            optimizers[1] = released.SingleOperationAdamW(resumed, config)
            optimizers[1].load_state_dict(state)
            optimizers[1].steps = steps
        for model, optimizer in zip((undisturbed, resumed), optimizers, strict=True):
            set_gradients(model, 1.0, number)
            optimizer.step()
    pairs = zip(undisturbed.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(found, expected) for found, expected in pairs)
