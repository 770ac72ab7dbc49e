"""A step splits batches, waits for nothing and keeps little memory, and computes the same."""

import math
import resource
import sys
from typing import ClassVar

import numpy as np
import pytest
import torch
from small_tasks import (
    CPU,
    NAMES,
    RUNTIME,
    assert_close_gradients,
    distinct_lengths,
    gradients,
    load_task,
    make_data,
    masked_model,
    training,
)
from torch.utils._python_dispatch import TorchDispatchMode

from utils.pruning import masks
from utils.training import cuda_graphs, memory
from utils.training import trainer as trainer_module
from utils.training.cuda_graphs import CudaGraphs
from utils.training.order import DataOrder, generator_state, seed_round, set_generator_state
from utils.training.trainer import StepPlan, Trainer, split_by_length


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("trainer"))


# ---- micro-batches


@pytest.mark.parametrize("name", ["MRPC", "STS-B", "squad"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_micro_batches_have_the_loss_and_gradients_of_the_batch(
    folder, monkeypatch, name, accumulation
):
    task = load_task(folder, name)
    batches = [np.arange(9), np.arange(9, 20)][:accumulation]
    found, counts = [], []
    for limit in (math.inf, 6e5, 1e3):
        monkeypatch.setattr(trainer_module, "ACTIVATION_BYTES", limit)
        model = masked_model(folder, task).double().eval()
        trainer = Trainer(model, task, training(max_grad_norm=1e9), RUNTIME)
        loss, norm = trainer.step(batches, 1e-3, (1, 0, 0))
        found.append((float(loss), float(norm), gradients(model)))
        counts.append(sum(1 for _ in trainer.micro_batches(batches)))
    assert counts[0] == accumulation < counts[1] < counts[2]
    for loss, norm, values in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        assert norm == pytest.approx(found[0][1], rel=1e-6)
        assert_close_gradients(values, found[0][2], 1e-6)


def test_a_batch_of_a_task_without_row_lengths_is_not_split(folder, monkeypatch):
    task = load_task(folder, "MRPC")
    monkeypatch.setattr(trainer_module, "ACTIVATION_BYTES", 1)
    monkeypatch.setattr(task, "row_lengths", lambda rows: None)
    trainer = Trainer(masked_model(folder, task), task, training(), RUNTIME)
    assert [len(rows) for _, rows, _ in trainer.micro_batches([np.arange(24)])] == [24]


def test_parts_have_rows_of_similar_length_and_about_equally_many_tokens():
    rows, lengths = np.arange(10, 16), np.array([2, 9, 4, 8, 3, 4])
    parts = [part.tolist() for part in split_by_length(rows, lengths, 3)]
    assert parts == [[11], [13], [12, 15, 14, 10]]
    assert [p.tolist() for p in split_by_length(rows[:2], lengths[:2], 5)] == [[11, 10]]


# ---- the loop and its checkpoints


class Recorder:
    def __init__(self, trainer):
        self.trainer, self.steps = trainer, []

    def after_step(self, step, learning_rate, loss, grad_norm, batches):
        self.steps.append((step, learning_rate, float(loss), float(grad_norm), batches[0].tolist()))


def test_training_resumes_from_a_checkpoint_bit_for_bit(folder):
    task, config = load_task(folder, "mlm"), training(weight_decay=0.1)
    order = DataOrder(task.train_rows, 6, 1, seed=3)
    plan = StepPlan(5, lambda step: 1e-3 / (step + 1), lambda step: order.batches(0, step))
    trainer = Trainer(masked_model(folder, task), task, config, RUNTIME)
    recorder = Recorder(trainer)
    seed_round(3, 0, 0)
    trainer.train(StepPlan(2, plan.learning_rate, plan.batches), 0, (3, 0), recorder.after_step)
    state = {**trainer.state(), "generators": generator_state()}
    state["model"] = {name: value.clone() for name, value in state["model"].items()}
    state["optimizer"] = {
        "state": {
            key: {name: value.clone() for name, value in each.items()}
            for key, each in state["optimizer"]["state"].items()
        },
        "param_groups": state["optimizer"]["param_groups"],
    }
    trainer.train(plan, 2, (3, 0), recorder.after_step)
    assert [step for step, *_ in recorder.steps] == [1, 2, 3, 4, 5]
    assert recorder.steps[2][1] == 1e-3 / 3 and trainer.optimizer.steps == 5
    assert all(p.grad is None for p in trainer.model.parameters())

    other = Trainer(masked_model(folder, task, 0.7), task, config, RUNTIME)
    other.load_state(state)
    set_generator_state(state["generators"])
    again = Recorder(other)
    other.train(plan, 2, (3, 0), again.after_step)
    assert again.steps == recorder.steps[2:]
    assert masks.state_digest(other.model) == masks.state_digest(trainer.model)


# ---- a step does not wait for the device


class NoWaiting(TorchDispatchMode):
    """Fail if the process waits for a GPU: for a value, or a size that depends on values."""

    waiting: ClassVar = {
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
        torch.ops.aten.equal.default,
        torch.ops.aten.repeat_interleave.Tensor,
    }

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        assert func not in self.waiting and not by_mask, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


class EagerGraph:
    """A CUDA graph without a GPU: a replay calls the captured function again."""

    def __init__(self, work, pool):
        self.replay = work

    def pool(self):
        return "pool"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("captured", [False, True])
def test_a_step_reads_nothing_from_the_device(folder, monkeypatch, name, captured):
    monkeypatch.setattr(cuda_graphs, "capture", EagerGraph)
    task, rows = load_task(folder, name), np.arange(12)
    assert name == "mlm" or distinct_lengths(task, rows) > 1
    trainer = Trainer(masked_model(folder, task), task, training(weight_decay=0.1), RUNTIME)
    if captured:
        trainer.graphs = CudaGraphs(trainer.losses, list(trainer.model.parameters()))
    with NoWaiting():
        for _ in range(3):
            trainer.step([rows], 1e-3, (1, 0, 0))
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        float(trainer.step([rows], 1e-3, (1, 0, 1))[0])


# ---- memory kept from step to step


def test_freed_memory_is_released_once_the_process_has_grown(monkeypatch):
    trims, sizes = [], iter([5e9, 1e9, 2.9e9, 3.1e9, 1.2e9, 3.1e9, 3.1e9, 1.1e9])
    library = type("Library", (), {"mallopt": lambda *_: 1, "malloc_trim": trims.append})
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(memory, "resident_bytes", lambda: next(sizes))
    release, counts = memory.keep_freed_memory(CPU), []
    for _ in range(4):
        release(2e9)
        counts.append(len(trims))
    # 5 GB at first; 2.9 is within 2 of the 1 in use, 3.1 is not; the next 3.1 is within 2 of 1.2
    assert counts == [1, 1, 2, 2]
    release(0)
    assert len(trims) == 3


def test_on_a_gpu_nothing_is_released(monkeypatch):
    monkeypatch.setattr(memory, "resident_bytes", lambda: pytest.fail("not asked for"))
    memory.keep_freed_memory(torch.device("cuda"))(0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_memory_is_in_bytes():
    highest = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert 0.05 * highest < memory.resident_bytes() < 1.1 * highest
