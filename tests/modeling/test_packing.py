"""Packed batches give the losses, gradients and logits of padded ones."""

import numpy as np
import pytest
import torch
from small_tasks import (
    LENGTH,
    NAMES,
    RUNTIME,
    PaddedGlue,
    PaddedSquad,
    assert_close_gradients,
    distinct_lengths,
    gradients,
    load_task,
    make_data,
    masked_model,
    padded,
)
from torch import nn
from transformers import BertForQuestionAnswering, BertForSequenceClassification

from benchmarks.baseline import make_rows
from utils.modeling.bert import load_model
from utils.modeling.packing import pack


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("packing"))


def model_of(folder, task):
    return load_model(task.model_class, str(folder / "bert"), task.bert_config, 1)


def transformers_batch(rows, indices, width=None):
    """Rows as transformers takes them."""
    lengths = rows.lengths(indices)
    values = padded(pack(rows, indices), lengths, width or int(lengths.max()))
    return dict(zip(("input_ids", "token_type_ids", "attention_mask"), values, strict=True))


def rows_of_all_kinds(rows, size):
    """Batches of all lengths, of one length, and of a single row."""
    lengths = rows.lengths()
    same = np.flatnonzero(lengths == np.bincount(lengths).argmax())[:4]
    return [np.arange(size), np.arange(size, 2 * size), same, np.array([5])]


def test_packed_squad_windows_have_the_loss_and_gradients_of_padded_ones(folder):
    task, rows = load_task(folder, "squad"), np.arange(7)
    assert distinct_lengths(task, rows) == 3
    theirs = BertForQuestionAnswering.from_pretrained(folder / "bert", attn_implementation="eager")
    theirs.double().eval()
    model = model_of(folder, task)
    theirs.qa_outputs.load_state_dict(model.qa_outputs.state_dict())
    batch = transformers_batch(task.train.rows, rows)
    output, empty = theirs(**batch), batch["attention_mask"] == 0
    logits = [x.masked_fill(empty, -torch.inf) for x in (output.start_logits, output.end_logits)]
    answers = [torch.from_numpy(end[rows].astype(np.int64)) for end in task.train.labels]
    pairs = zip(logits, answers, strict=True)
    expected = sum(nn.functional.cross_entropy(*pair) for pair in pairs) / 2
    expected.backward()
    loss = task.loss(model.double().eval(), task.train_batch(rows, 0, RUNTIME))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    found = {name: value for name, value in gradients(model).items() if "pooler" not in name}
    assert_close_gradients(found, gradients(theirs), 5e-6)  # their softmax is in float32


@pytest.mark.parametrize("name", ["MRPC", "STS-B"])
def test_evaluation_on_packed_rows_gives_the_logits_of_padded_rows(folder, name):
    packed, padded_task = load_task(folder, name), load_task(folder, name, PaddedGlue)
    model, rows = masked_model(folder, packed).double(), packed.dev["dev"].rows
    assert len(set(rows.lengths())) > 5
    found, expected = (task.predict(model, rows, RUNTIME) for task in (packed, padded_task))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.ptp(expected) > 0.01


def test_evaluation_on_packed_squad_windows_gives_the_logits_of_padded_windows(folder):
    packed, padded_task = load_task(folder, "squad"), load_task(folder, "squad", PaddedSquad)
    model, rows = masked_model(folder, packed).double(), packed.dev[1].rows
    found, expected = (task.predict(model, rows, RUNTIME) for task in (packed, padded_task))
    tokens = np.isfinite(found)
    lengths = tokens.sum(1)[:, 0]
    assert len(set(lengths)) > 3 and (lengths == rows.lengths()).all()
    np.testing.assert_allclose(found[tokens], expected[tokens], rtol=1e-5, atol=1e-6)


def test_packed_and_padded_rows_give_the_same_losses_and_gradients(folder):
    packed, padded_task = load_task(folder, "MRPC"), load_task(folder, "MRPC", PaddedGlue)
    model = model_of(folder, packed).double().eval()
    for rows in rows_of_all_kinds(packed.train.rows, 16):
        found, tokens = [], []
        for task in (packed, padded_task):
            model.zero_grad()
            batch = task.train_batch(rows, 0, RUNTIME)
            loss = task.loss(model, batch)
            loss.backward()
            found.append((loss.item(), gradients(model)))
            tokens.append(len(batch.packed.slots))
        assert tokens == [packed.train.rows.lengths(rows).sum(), LENGTH * len(rows)]
        assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
        assert_close_gradients(found[0][1], found[1][1], 1e-6)


def test_the_encoder_computes_what_transformers_computes_on_padded_rows(folder):
    task = load_task(folder, "MRPC")
    model = model_of(folder, task).eval()
    theirs = BertForSequenceClassification.from_pretrained(
        folder / "bert", num_labels=2, attn_implementation="eager"
    ).eval()
    theirs.classifier.load_state_dict(model.classifier.state_dict())
    rows = task.train.rows
    for indices in rows_of_all_kinds(rows, 16):
        with torch.no_grad():
            expected = theirs(**transformers_batch(rows, indices)).logits
            found = task.logits(model, pack(rows, indices))
        assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("train", [False, True])
def test_padded_batches_have_the_loss_and_gradients_of_transformers_to_the_last_bit(folder, train):
    task, rows = load_task(folder, "MRPC", PaddedGlue), np.arange(24)
    assert distinct_lengths(task, rows) > 1
    model = model_of(folder, task).train(train)
    theirs = BertForSequenceClassification.from_pretrained(
        folder / "bert", num_labels=2, attn_implementation="sdpa"
    ).train(train)
    theirs.load_state_dict(model.state_dict())
    batch = task.train_batch(rows, 0, RUNTIME)
    torch.manual_seed(3)
    found = task.loss(model, batch)
    found.backward()
    torch.manual_seed(3)
    inputs = transformers_batch(task.train.rows, rows, LENGTH)
    expected = theirs(**inputs, labels=batch.labels).loss
    expected.backward()
    assert found.item() == expected.item()
    ours = gradients(model)
    assert [n for n, p in theirs.named_parameters() if not torch.equal(p.grad, ours[n])] == []


def test_packed_rows_do_not_see_each_other(folder):
    task = load_task(folder, "MRPC")
    model, rows = model_of(folder, task).eval(), task.train.rows
    with torch.no_grad():
        together = task.logits(model, pack(rows, np.arange(8)))
        alone = [task.logits(model, pack(rows, np.array([row]))) for row in range(8)]
    assert (together - torch.cat(alone)).abs().max() < 1e-6


# ---- bucketed shapes


@pytest.mark.parametrize("name", NAMES)
def test_a_bucketed_batch_has_the_same_loss_and_gradients(folder, name):
    task, found, shapes = load_task(folder, name), [], ([], [])
    for start in range(5):
        batch = task.train_batch(np.arange(start, start + 6), 1, RUNTIME)
        for same, seen in zip((batch, batch.bucketed()), shapes, strict=True):
            model = masked_model(folder, task).double().eval()
            loss = task.loss(model, same)
            loss.backward()
            found.append((loss.item(), gradients(model)))
            seen.append(same.shape())
        tokens, width = same.packed.ids.shape[1], same.packed.width
        assert width % 32 == tokens % width == 0
        assert batch.packed.ids.shape[1] <= tokens < batch.packed.ids.shape[1] + width
        assert len(same.packed.slots.unique()) == tokens and same.packed.lengths.min() > 0
    for (loss, values), (bucketed_loss, bucketed) in zip(found[::2], found[1::2], strict=True):
        assert bucketed_loss == pytest.approx(loss, rel=1e-6)
        assert_close_gradients(bucketed, values, 1e-6)
    assert len({loss for loss, _ in found[::2]}) == 5
    assert len(set(shapes[1])) < len(set(shapes[0]))


@pytest.mark.parametrize(
    ("width", "tokens", "lengths", "full"),
    [(64, 192, [64] * 3, True), (40, 128, [40] * 3 + [8], False)],
)
def test_full_rows_of_a_round_width_stay_full(width, tokens, lengths, full):
    packed = pack(make_rows([[2] * width] * 3, [[0] * width] * 3), np.arange(3))
    found = packed.bucketed()
    assert packed.full and found.full == full
    assert found.ids.shape[1] == tokens and found.lengths.tolist() == lengths
