"""MLM: the masking of BERT, batches and their loss, evaluation on fixed masks."""

import math
from unittest import mock

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from transformers import BertForMaskedLM

from utils.config import ModelConfig, OutputConfig, TextConfig, TrainingConfig
from utils.errors import UserError
from utils.modeling.attention import encode
from utils.modeling.bert import load_model
from utils.modeling.runtime import Runtime
from utils.tasks import mlm
from utils.tasks.mlm import Masking, MlmTask

CPU = torch.device("cpu")
RUNTIME = Runtime(CPU)
MASK, VOCAB, SPECIALS = 4, 1000, (0, 2, 3)
BLOCK = 24


# ---- masking


def masked(ids: np.ndarray, seed: int = 1, probability: float = 0.15):
    """Return the inputs, and True where a token is to be predicted, [rows, width] each."""
    row_of = np.repeat(np.arange(len(ids)), ids.shape[1])
    masking = Masking(MASK, SPECIALS, VOCAB, probability)
    found = masking.draw(ids.flatten(), row_of, seed, CPU)
    chosen = torch.zeros(ids.size, dtype=torch.bool).index_fill(0, found.positions, True)
    assert torch.equal(found.positions, chosen.nonzero().flatten())
    assert torch.equal(found.targets, torch.from_numpy(ids.flatten())[chosen])
    assert np.array_equal(found.rows, row_of[chosen.numpy()])
    return found.inputs.view(ids.shape), chosen.view(ids.shape)


def near(count: int, n: int, p: float) -> bool:
    return abs(count - n * p) < 4 * math.sqrt(n * p * (1 - p))


@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_fractions_are_those_of_bert(probability):
    ids = np.full((400, 1000), 7)  # 7 is drawn at random once in 1,000 times
    inputs, chosen = masked(ids, probability=probability)
    n = int(chosen.sum())
    assert near(n, ids.size, probability)
    assert near(int((inputs[chosen] == MASK).sum()), n, 0.8 + 0.1 / VOCAB)
    assert near(int((inputs[chosen] == 7).sum()), n, 0.1 + 0.1 / VOCAB)
    assert (inputs[~chosen] == 7).all()
    drawn = inputs[chosen & (inputs != MASK) & (inputs != 7)]
    assert drawn.min() >= 0 and drawn.max() < VOCAB
    assert near(int((drawn < VOCAB // 2).sum()), len(drawn), 0.5)
    assert len(drawn.unique()) > 0.9 * VOCAB


def test_special_tokens_are_never_chosen():
    ids = np.random.default_rng(0).integers(8, size=(200, 200))
    inputs, chosen = masked(ids, probability=1.0)
    special = torch.from_numpy((ids == 0) | (ids == 2) | (ids == 3))
    assert torch.equal(chosen, ~special)
    assert torch.equal(inputs[special], torch.from_numpy(ids)[special])


def test_the_seed_decides_and_the_ids_stay():
    ids = np.arange(2000).reshape(4, 500) % VOCAB
    before = ids.copy()
    inputs, chosen = masked(ids)
    again, chosen_again = masked(ids)
    other, _ = masked(ids, seed=2)
    assert inputs.dtype == torch.int64 and chosen.dtype == torch.bool and inputs.shape == ids.shape
    assert torch.equal(inputs, again) and torch.equal(chosen, chosen_again)
    assert not torch.equal(inputs, other)
    assert np.array_equal(ids, before)


def test_number_and_positions_are_distributed_as_one_draw_per_token():
    """The number chosen in a row is binomial; all positions and pairs are equally likely."""
    rows, width = 20000, 10
    ids = np.full((rows, width), 7)
    ids[:, -2:] = 0  # special
    _, chosen = masked(ids, probability=0.3)
    counts = torch.bincount(chosen.sum(1), minlength=9)
    for k, count in enumerate(counts.tolist()):
        assert near(count, rows, math.comb(8, k) * 0.3**k * 0.7 ** (8 - k)), k
    together = chosen[:, :8].double().T @ chosen[:, :8].double()
    for i in range(8):
        for j in range(8):
            assert near(int(together[i, j]), rows, 0.3 if i == j else 0.09), (i, j)


def test_rows_of_varying_length_are_masked_together():
    lengths = [3, 1, 400, 2]
    ids, row_of = np.full(sum(lengths), 7), np.repeat(np.arange(4), lengths)
    found = Masking(MASK, (), VOCAB, 0.5).draw(ids, row_of, 5, CPU)
    assert np.array_equal(found.rows, row_of[found.positions.numpy()])
    assert near(int((found.rows == 2).sum()), 400, 0.5)
    nothing = Masking(MASK, (7,), VOCAB).draw(ids, row_of, 5, CPU)
    assert len(nothing.positions) == len(nothing.targets) == 0
    assert torch.equal(nothing.inputs, torch.from_numpy(ids))


# ---- the task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlm")
    tiny.bert(folder / "bert", dropout=0.0)
    tiny.text(folder / "text")
    return folder


def load(folder, data=None, model=None, **training):
    given = {"mlm": True, "block_size": BLOCK, "threads": 1}
    given["train_data_file"] = str(folder / "text" / "en.train")
    given["eval_data_file"] = str(folder / "text" / "en.valid")
    return MlmTask.load(
        TextConfig(**(given | (data or {}))),
        ModelConfig(**(model or {"model_name_or_path": str(folder / "bert")})),
        TrainingConfig(**(training or {"do_train": True, "do_eval": True})),
        OutputConfig(output_dir=str(folder / "out")),
    )


@pytest.fixture(scope="module")
def task(folder):
    return load(folder)


@pytest.fixture
def model(task, folder):
    return load_model(task.model_class, str(folder / "bert"), task.bert_config, 1).eval()


def test_the_loss_at_the_masked_tokens_is_that_of_the_whole_decoder(task, model):
    batch = task.train_batch(np.arange(6), 1, RUNTIME)
    loss = task.loss(model, batch)
    loss.backward()
    few = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    everything = model.cls(encode(model.bert, batch.packed))
    labels = torch.full((len(everything),), -100)
    whole = F.cross_entropy(everything, labels.index_copy(0, batch.positions, batch.targets))
    whole.backward()
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)
    for name, value in model.named_parameters():
        if value.grad is not None:
            assert torch.allclose(few[name], value.grad, rtol=1e-4, atol=1e-7), name


def test_the_loss_is_that_of_transformers(task, model, folder):
    reference = BertForMaskedLM.from_pretrained(folder / "bert").eval()
    batch = task.train_batch(np.arange(5), 1, RUNTIME)
    labels = torch.full((5 * BLOCK,), -100).index_copy(0, batch.positions, batch.targets)
    with torch.no_grad():
        ids = batch.packed.ids.view(5, BLOCK)
        expected = reference(input_ids=ids, labels=labels.view(5, BLOCK)).loss
        assert task.loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_bucketed_batch_has_the_same_loss(task, model):
    batch = task.train_batch(np.arange(5), 1, RUNTIME)
    bucketed = batch.bucketed()
    assert len(bucketed.positions) == mlm.PREDICTED_MULTIPLE == len(bucketed.targets)
    with torch.no_grad():
        same = task.loss(model, batch).item()
        assert task.loss(model, bucketed).item() == pytest.approx(same, rel=1e-6)


@pytest.mark.parametrize("by_lines", [False, True])
@pytest.mark.parametrize("rows", [[9, 2, 5], [4]])
def test_processes_share_the_batch_of_one(folder, by_lines, rows):
    task = load(folder, {"line_by_line": by_lines})
    whole = task.train_batch(np.array(rows), 7, RUNTIME)
    shares = [
        task.train_batch(np.array(rows), 7, Runtime(CPU, rank=rank, world_size=2))
        for rank in range(2)
    ]
    assert sorted(torch.cat([s.targets for s, _ in zip(shares, rows, strict=False)])) == sorted(
        whole.targets
    )
    for rank, share in enumerate(shares):
        idle = rank >= len(rows)
        assert share.total == (math.inf if idle else whole.total)
        for k, first in enumerate(share.packed.first.tolist()):
            row = 0 if idle else rank + 2 * k
            start, length = int(whole.packed.first[row]), int(whole.packed.lengths[row])
            own = share.packed.ids[0, first : first + length]
            assert torch.equal(own, whole.packed.ids[0, start : start + length])
            in_whole = (whole.positions >= start) & (whole.positions < start + length)
            in_share = (share.positions >= first) & (share.positions < first + length)
            moved = whole.positions[in_whole] - start + first
            assert torch.equal(share.positions[in_share], moved)
            assert torch.equal(share.targets[in_share], whole.targets[in_whole])


def test_evaluation_does_not_depend_on_the_batches(task, model, tmp_path, monkeypatch):
    found = []
    for tokens in (BLOCK, 5 * BLOCK, mlm.EVALUATION_TOKENS, mlm.EVALUATION_TOKENS):
        monkeypatch.setattr(mlm, "EVALUATION_TOKENS", tokens)
        found.append(task.evaluate(model, RUNTIME, tmp_path, len(found)))
    assert found[2] == found[3]
    for each in found:
        assert each["accuracy"] == found[0]["accuracy"]
        assert each["perplexity"] == pytest.approx(found[0]["perplexity"], rel=1e-6)


def test_accuracy_and_perplexity_are_over_the_masked_tokens(task, model, tmp_path):
    hits = masked_tokens = 0
    loss = 0.0
    for batch in task._evaluation_batches(RUNTIME, None):
        with torch.no_grad():
            scores = model.cls(encode(model.bert, batch.packed)).log_softmax(-1)[batch.positions]
        hits += int((scores.argmax(-1) == batch.targets).sum())
        loss -= float(scores.gather(1, batch.targets[:, None]).double().sum())
        masked_tokens += len(batch.targets)
    found = task.evaluate(model, RUNTIME, tmp_path, None)
    perplexity = pytest.approx(math.exp(loss / masked_tokens), rel=1e-6)
    assert found == {"accuracy": hits / masked_tokens, "perplexity": perplexity}
    assert 0.1 < masked_tokens / (len(task.dev) * (BLOCK - 2)) < 0.2
    with np.load(tmp_path / "predictions_.npz") as kept:
        assert kept["accuracy"].shape == kept["weights"].shape == (len(task.dev),)
        assert (kept["accuracy"].sum(), kept["weights"].sum()) == (hits, masked_tokens)
        assert len(set(kept["weights"])) > 1 and str(kept["metric"]) == "accuracy"


def test_a_subclass_may_weight_the_accuracies_of_batches(task, model, tmp_path):
    class Weighted(MlmTask):
        def logits(self, model, batch):
            scores = F.one_hot(batch.targets, VOCAB).float()
            scores[0] *= -1  # wrong once in each batch
            return scores

        def _evaluation_batch_blocks(self, block_size):
            return 3

        def _weights(self, batch):
            return batch.packed.ids.numel(), 1

    weighted = Weighted(task.tokenizer, task.bert_config, 0.15, task.train, task.dev)
    batches = list(weighted._evaluation_batches(RUNTIME, None))
    accuracies = [1 - 1 / len(batch.targets) for batch in batches]
    sizes = [batch.packed.ids.numel() for batch in batches]
    assert max(sizes) == 3 * BLOCK and len(set(accuracies)) > 1 and len(set(sizes)) > 1
    expected = np.average(accuracies, weights=sizes)
    found = weighted.evaluate(model, RUNTIME, tmp_path, None)
    assert found["accuracy"] == pytest.approx(expected, rel=1e-6)


def test_load_reads_what_the_run_needs(folder):
    task = load(folder, do_eval=True)
    assert task.train is None and len(task.dev) > 0
    task = load(folder, do_train=True)
    assert task.dev is None and task.train_rows == len(task.train)
    assert task.data_digest().startswith(f"{len(task.train)} {2 * BLOCK}:")
    with mock.patch.object(mlm, "load_blocks", wraps=mlm.load_blocks) as read:
        load(folder, {"block_size": None}, do_train=True)
    assert read.call_args.args[1] == 64  # the model's positions


def test_load_needs_no_model_but_its_configuration_and_vocabulary(folder):
    bert = str(folder / "bert")
    without = {"model_name_or_path": None, "config_name": bert, "tokenizer_name": bert}
    assert len(load(folder, model=without).train) > 0


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        ({"train_data_file": None}, {}, "--do_train needs --train_data_file"),
        ({"eval_data_file": None}, {}, "--do_eval needs --eval_data_file"),
        ({"block_size": 2}, {}, "--block_size 2 must lie between 3"),
        ({"block_size": 65}, {}, "--block_size 65 must lie between 3 and the model's 64"),
        ({}, {"model_name_or_path": None}, "--model_name_or_path"),
    ],
)
def test_load_reports_what_is_missing_or_wrong(folder, data, model, message):
    with pytest.raises(UserError, match=message):
        load(folder, data, model)
