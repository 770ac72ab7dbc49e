"""The released code's rules on single batches and steps: losses, gradients, optimizer, traps."""

import math

import launch
import numpy as np
import pytest
import tiny
import torch
from launch import results
from released_replay import LiteralAdamW
from transformers import BertForPreTraining, BertForQuestionAnswering, BertForSequenceClassification

from benchmarks import plain
from utils import glue_data, models, squad_data, training
from utils.glue import GlueTask
from utils.optim import ReleasedAdamW, linear_schedule
from utils.rows import pack
from utils.squad import AnswerOptions, SquadTask
from utils.training import Recipe, Trainer

CPU = torch.device("cpu")
CLASSES = (models.SequenceClassifier, models.QuestionAnswerer, models.MaskedLanguageModel)


@pytest.fixture(scope="module")
def source(golden):
    return str(golden / "assets" / "model")


@pytest.mark.parametrize("name", ["MRPC", "STS-B", "squad"])
def test_a_batch_as_released_has_transformers_loss_and_gradients_to_the_last_bit(
    golden, source, tmp_path, name, monkeypatch
):
    rows = np.arange(24)
    if name == "squad":
        task, reference, labels = (
            read_squad(golden, source, tmp_path, 48),
            BertForQuestionAnswering,
            2,
        )
        padded = plain.squad_batch(task.train, rows, 48)
    else:
        task = read_glue(golden, source, tmp_path, name, 48)
        reference, labels, padded = (
            BertForSequenceClassification,
            task.labels,
            plain.glue_batch(task.train, rows, 48),
        )
    model = models.load_model(
        task.model_class, source, models.load_config(source, num_labels=labels), 57
    )
    theirs = reference.from_pretrained(source, num_labels=labels, attn_implementation="sdpa")
    theirs.load_state_dict(
        {k: v for k, v in model.state_dict().items() if k in theirs.state_dict()}
    )
    found, expected = (
        task.loss(model.train(), task.train_batch(rows, (57, 0, 0, 0), CPU)),
        theirs.train()(**padded).loss,
    )
    found.backward()
    expected.backward()
    assert (
        found.item() == expected.item() and len(set(padded["attention_mask"].sum(1).tolist())) > 1
    )
    gradients = {key: p.grad for key, p in model.named_parameters()}
    assert [
        key for key, p in theirs.named_parameters() if not torch.equal(p.grad, gradients[key])
    ] == []
    monkeypatch.setattr(
        training, "ACTIVATION_BYTES", 1
    )  # and is not worked on in parts, which would round otherwise
    assert [
        len(part) for _, part, _ in Trainer(model, task, Recipe(1e-3, 24), CPU).parts([rows])
    ] == [24]


def read_glue(golden, source, cache, name, length):
    """A GLUE task of the reference with its training rows and one development set, padded to `length` if given."""
    task = GlueTask(glue_data.find_spec(name), length)
    task.read(
        golden / "assets" / "glue" / name,
        models.load_tokenizer(source, True),
        48,
        train=True,
        dev=True,
        cache_dir=cache,
    )
    return task


def read_squad(golden, source, cache, length):
    """SQuAD of the reference with its training windows, padded to `length` if given."""
    task, file = (
        SquadTask(AnswerOptions(), length),
        str(golden / "assets" / "squad" / "train-v1.1.json"),
    )
    task.train = squad_data.load(
        file, False, True, models.load_tokenizer(source, True), 48, 16, 12, 1, cache, False
    )[1]
    return task


# ---- rows without padding


@pytest.fixture(scope="module")
def classifier(source):
    return models.load_model(
        models.SequenceClassifier, source, models.load_config(source, num_labels=2), 57
    )


@pytest.fixture(scope="module")
def tasks(golden, source, tmp_path_factory):
    """MRPC without padding, and padded to 48."""
    return [
        read_glue(golden, source, tmp_path_factory.mktemp("cache"), "MRPC", length)
        for length in (None, 48)
    ]


def batches(task, size=16):
    """Some batches of training rows: of all lengths, of one length, and a single row."""
    lengths = task.train[0].lengths()
    alike = np.flatnonzero(lengths == np.bincount(lengths).argmax())[:4]
    return [np.arange(size), np.arange(size, 2 * size), alike, np.array([5])]


def test_packed_and_padded_rows_give_the_same_losses(classifier, tasks):
    packed, padded = tasks
    classifier.eval()
    for rows in batches(packed):
        with torch.no_grad():
            losses = [
                float(task.loss(classifier, task.train_batch(rows, (), CPU)))
                for task in (packed, padded)
            ]
        assert abs(losses[0] - losses[1]) < 1e-6
        widths = [len(task.train_batch(rows, (), CPU).packed.slots) for task in (packed, padded)]
        assert widths == [packed.train[0].lengths()[rows].sum(), 48 * len(rows)]


def test_packed_and_padded_rows_give_the_same_gradients(source, tasks):
    model = models.load_model(
        models.SequenceClassifier, source, models.load_config(source, num_labels=2), 57
    )
    model.double().eval()
    for rows in batches(tasks[0], 6):
        found = []
        for task in tasks:
            model.zero_grad()
            task.loss(model, task.train_batch(rows, (), CPU)).backward()
            found.append({name: p.grad.clone() for name, p in model.named_parameters()})
        packed, padded = found
        smallest = 1e-9 * max(
            gradient.abs().max() for gradient in padded.values()
        )  # a key's bias has none but rounding
        for name in packed:
            assert (packed[name] - padded[name]).abs().max() <= 1e-6 * max(
                smallest, padded[name].abs().max()
            ), name


def test_the_encoder_computes_what_transformers_computes_on_padded_rows(source, classifier, tasks):
    theirs = BertForSequenceClassification.from_pretrained(
        source, num_labels=2, attn_implementation="eager"
    ).eval()
    theirs.classifier.load_state_dict(classifier.classifier.state_dict())
    classifier.eval()
    rows, _ = tasks[0].train
    for chosen in batches(tasks[0]):
        with torch.no_grad():
            expected = theirs(
                **plain.padded(rows, chosen, int(rows.lengths()[chosen].max()))
            ).logits
            found = tasks[0].logits(classifier, pack(rows, chosen))
        assert (found - expected).abs().max() < 1e-5


# ---- traps


class Layers(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.dense = torch.nn.Linear(5, 4, dtype=dtype)
            self.LayerNorm = torch.nn.LayerNorm(4, dtype=dtype)


def one_run(step_of, model, scale):
    """20 steps on gradients of about the size `scale`; the parameters at the end."""
    draw = torch.Generator().manual_seed(2)
    for number in range(20):
        for p in model.parameters():
            p.grad = scale * torch.randn(p.shape, generator=draw, dtype=torch.float64).to(p.dtype)
        step_of(1e-3 * (1 - number / 20))
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("scale", [1e-8, 1e-6, 1.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("fused", [True, False])
def test_the_optimizer_follows_the_released_rule(scale, weight_decay, fused):
    ours, literal = Layers(torch.float64), Layers(torch.float64)
    optimizer = ReleasedAdamW(ours, 1e-3, 1e-8, weight_decay, fused)

    def step(lr):
        optimizer.set_lr(lr)
        optimizer.step()

    reference = LiteralAdamW(list(literal.parameters()), 1e-8)
    decays = [weight_decay * (name == "dense.weight") for name, _ in literal.named_parameters()]
    found, expected = (
        one_run(step, ours, scale),
        one_run(lambda lr: reference.step(lr, decays), literal, scale),
    )
    assert (found - expected).abs().max() < 1e-14
    assert fused or torch.equal(found, expected)
    assert (
        found - torch.cat([p.flatten() for p in Layers(torch.float64).parameters()])
    ).abs().max() > 1e-4


def test_the_rule_of_torch_differs_where_gradients_are_small():
    ours, theirs = Layers(torch.float64), Layers(torch.float64)
    optimizer = ReleasedAdamW(ours, 1e-3, 1e-8, 0.0)
    torch_rule = torch.optim.AdamW(theirs.parameters(), lr=1e-3, eps=1e-8, weight_decay=0.0)

    def step(lr, of):
        for group in of.param_groups:
            group["lr"] = lr
        of.step()

    found = one_run(lambda lr: step(lr, optimizer), ours, 1e-7)
    assert (found - one_run(lambda lr: step(lr, torch_rule), theirs, 1e-7)).abs().max() > 1e-4


def test_a_step_that_the_loss_scaler_skips_leaves_no_trace():
    def run(overflowing):
        layers, scaler = Layers(torch.float32), torch.amp.GradScaler("cpu", init_scale=2.0**8)
        optimizer = ReleasedAdamW(layers, 1e-3, 1e-8, 0.1)
        for overflows in overflowing:
            scaled = float(scaler.scale(torch.tensor(1e-7)))
            for p in layers.parameters():
                p.grad = torch.full_like(p, math.inf if overflows else scaled)
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        return (
            torch.cat([p.detach().flatten() for p in layers.parameters()]),
            optimizer.steps,
            scaler.get_scale(),
        )

    (found, steps, scale), (expected, _, _) = (
        run([True, True, False, True, False]),
        run([False, False]),
    )
    assert (steps, scale) == (2, 2.0**5)
    assert torch.equal(found, expected)


def test_the_schedule_is_linear_to_zero_after_the_warm_up():
    rate = linear_schedule(2e-5, 10)
    assert [rate(step) for step in (0, 5, 9, 10, 11)] == pytest.approx(
        [2e-5, 1e-5, 2e-6, 0, 0], abs=1e-18
    )
    warm = linear_schedule(2e-5, 10, warmup=4)
    assert [warm(step) for step in (0, 1, 4, 7, 10)] == pytest.approx(
        [0, 5e-6, 2e-5, 1e-5, 0], abs=1e-18
    )


def test_every_task_has_the_pooler_with_its_pre_trained_weights(source):
    whole = BertForPreTraining.from_pretrained(source).bert.state_dict()
    for cls in CLASSES:
        model = models.load_model(cls, source, models.load_config(source), 1)
        state = model.bert.state_dict()
        assert all(torch.equal(state[name], value) for name, value in whole.items())
        assert "pooler.dense.weight" in state


def test_a_model_path_that_ends_in_a_number_is_a_model_and_not_a_step(tmp_path):
    bert = tiny.bert(tmp_path / "checkpoint-7")
    data = tiny.glue(tmp_path / "RTE", "RTE", train=16, dev=8)
    ended = launch.run(
        "glue_trans.py",
        "--dir",
        "pre",
        "--task_name",
        "RTE",
        "--data_dir",
        data,
        "--max_seq_length",
        32,
        "--model_name_or_path",
        bert,
        "--output_dir",
        tmp_path / "out-3",
        "--do_train",
        "--do_eval",
        "--max_steps",
        2,
        "--no_cuda",
    )
    assert ended.code == 0, ended.err
    assert [row["step"] for row in results(tmp_path / "out-3")] == [2]


def test_a_tokenizer_without_a_length_limit_is_cut_by_the_flag(tmp_path):
    tokenizer = models.load_tokenizer(str(tiny.bert(tmp_path / "bert")), True)
    assert tokenizer.model_max_length > 10**9
    tiny.glue(tmp_path / "SST-2", "SST-2")
    rows, _ = glue_data.load(
        glue_data.find_spec("SST-2"), tmp_path / "SST-2", "train", tokenizer, 6
    )
    assert rows.lengths().max() == 6


def test_packed_rows_do_not_see_each_other(classifier, tasks):
    classifier.eval()
    rows, _ = tasks[0].train
    with torch.no_grad():
        together = tasks[0].logits(classifier, pack(rows, np.arange(8)))
        alone = torch.cat(
            [tasks[0].logits(classifier, pack(rows, np.array([at]))) for at in range(8)]
        )
    assert (together - alone).abs().max() < 1e-6
