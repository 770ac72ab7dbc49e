"""Each process computes its share: every row once, and together the whole batch."""

import functools

import numpy as np
import pytest
import torch
from small_tasks import CPU, RUNTIME, load_task, make_data

from utils.data.rows import batches_by_length
from utils.modeling.bert import load_model
from utils.modeling.runtime import Runtime
from utils.training import distributed
from utils.training.order import DataOrder


class OneOfMany(Runtime):
    """A rank that adds nothing to its sums."""

    def sum(self, tensor):
        return tensor


def sum_over_ranks(size, evaluate):
    """Return the sum of what `evaluate` returns on each of `size` ranks."""
    found = [evaluate(OneOfMany(CPU, rank=rank, world_size=size)) for rank in range(size)]
    return functools.reduce(np.add, found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("distributed"))


def loaded(folder, name):
    task = load_task(folder, name)
    return task, load_model(task.model_class, str(folder / "bert"), task.bert_config, 1)


@pytest.mark.parametrize("size", [2, 3, 50])
@pytest.mark.parametrize("name", ["MRPC", "squad"])
def test_one_rank_predicts_each_row(monkeypatch, folder, name, size):
    """An uneven share of small batches each, or none."""
    task, model = loaded(folder, name)
    rows = task.dev["dev"].rows if name == "MRPC" else task.dev[1].rows
    tokens = 60 if name == "MRPC" else 100
    monkeypatch.setattr("utils.data.rows.EVALUATION_TOKENS", tokens)
    assert len(batches_by_length(rows)) > 3

    def predict(runtime):
        return task.predict(model, rows, runtime)

    whole = predict(RUNTIME)
    assert np.abs(whole).min() > 0
    np.testing.assert_array_equal(sum_over_ranks(size, predict), whole)


@pytest.mark.parametrize("size", [2, 3, 50])
def test_one_rank_scores_each_block(monkeypatch, folder, tmp_path, size):
    task, model = loaded(folder, "mlm")
    # four blocks in a batch, fewer in the last
    monkeypatch.setattr("utils.tasks.mlm.EVALUATION_TOKENS", 4 * 24)
    assert len(task.dev) > 10 and len(task.dev) % 4

    def evaluate(runtime):
        sums = []

        class Recorder(OneOfMany):
            def sum(self, tensor):
                sums.append(tensor.clone())
                return tensor

        recorder = Recorder(CPU, rank=runtime.rank, world_size=runtime.world_size)
        task.evaluate(model, recorder, tmp_path, 0)
        return torch.cat(sums).numpy()

    np.testing.assert_allclose(sum_over_ranks(size, evaluate), evaluate(RUNTIME), rtol=1e-12)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_the_shares_of_a_training_batch_are_the_batch(size):
    order = DataOrder(17, 6, 1, seed=1)
    for step in range(3):
        (batch,) = order.batches(0, step)
        shares = []
        for rank in range(size):
            rows, total = Runtime(CPU, rank=rank, world_size=size).share_of_batch(batch)
            assert len(rows) > 0 and total in (len(batch), float("inf"))
            shares += list(rows) if total == len(batch) else []  # else weight zero: no row is left
        assert sorted(shares) == sorted(batch)


def test_one_process_needs_no_group():
    runtime = distributed.join(no_cuda=True, precision="bf16")
    assert runtime == Runtime(CPU, "bf16") and runtime.is_main
    assert distributed.any_of(runtime, True, False) == (True, False)
    assert distributed.gather("a") == ["a"] and distributed.broadcast("a") == "a"
    distributed.check_same({"value": "a"})
    distributed.wait_for_main()
    distributed.leave()
