"""Captured steps compute what steps without CUDA graphs compute."""

import contextlib
import gc

import numpy as np
import pytest
import torch
from small_tasks import CPU, NAMES, RUNTIME, load_task, make_data, masked_model, training

from utils.modeling.runtime import Runtime
from utils.pruning import masks
from utils.training import cuda_graphs
from utils.training.cuda_graphs import CudaGraphs
from utils.training.order import seed_round
from utils.training.trainer import Trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("graphs"))


@pytest.fixture
def captures(monkeypatch):
    """Graphs captured without a GPU: a replay computes again, from the captured batch's values."""
    made = []

    class Graph:
        def __init__(self, work, pool):
            assert pool == (made[0].pool() if made else None)
            self.replay = work
            made.append(self)

        def pool(self):
            return "pool"

    monkeypatch.setattr(cuda_graphs, "capture", Graph)
    return made


def trainer_of(folder, task, captured=True, train=False, **changes):
    model = masked_model(folder, task).train(train)
    trainer = Trainer(model, task, training(**changes), RUNTIME)
    if captured:
        trainer.graphs = CudaGraphs(trainer.losses, list(model.parameters()))
    return trainer


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_captured_steps_are_the_same_through_prunes_and_rewinds(
    folder, captures, name, accumulation
):
    task, found = load_task(folder, name), []
    batches = [[np.arange(k % 3, 6 + k % 3), np.arange(7, 13)][:accumulation] for k in range(12)]
    for captured in (False, True):
        trainer = trainer_of(folder, task, captured, learning_rate=1e-2)
        model = trainer.model.double()
        theta, steps = masks.snapshot(model), []
        for k, batch in enumerate(batches):
            loss, norm = trainer.step(batch, 1e-2, (1, 0, k))
            steps.append((float(loss), float(norm)))
            if k % 5 == 4:
                masks.prune_to(model, 0.4 + k / 20)
                masks.rewind(model, theta)
                trainer.reset_optimizer()
        parameters = {n: p.detach().clone() for n, p in model.named_parameters()}
        unused = {n for n, p in model.named_parameters() if p.grad is None}
        found.append((steps, parameters, unused))
    assert 0 < len(captures) < len(batches) and len(set(found[0][0])) == len(batches)
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-4)
    for parameter, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][parameter], value, rtol=1e-4, atol=1e-4)
    assert found[1][2] == found[0][2]  # no gradient instead of zeros: the optimizer skips these


def test_shapes_are_captured_the_second_time_and_up_to_a_limit(folder, captures, monkeypatch):
    trainer, counts = trainer_of(folder, load_task(folder, "MRPC"), train=True), []
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    for rows in (3, 3, 3, 5, 5, 9, 9, 9, 3, 5):
        trainer.step([np.arange(rows)], 1e-3, (1, 0, 0))
        counts.append(len(captures))
    assert counts == [0, 1, 1, 1, 2, 2, 2, 2, 2, 2]


def test_if_memory_is_short_graphs_are_freed_and_training_continues(
    folder, monkeypatch, capsys, captures
):
    task, found, kept, capture = load_task(folder, "MRPC"), [], [], cuda_graphs.capture
    for limit in (100, 1):  # graphs that fit into memory

        def short(work, pool, limit=limit):
            graph = capture(work, pool)
            if len(captures) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return graph

        captures.clear()
        monkeypatch.setattr(cuda_graphs, "capture", short)
        trainer = trainer_of(folder, task)
        losses = []
        for rows in (3, 3, 3, 9, 9, 9, 3, 5, 5, 3):
            losses.append(float(trainer.step([np.arange(rows)], 1e-3, (1, 0, 0))[0]))
        found.append(losses)
        kept.append(len(trainer.graphs._captured))
    assert found[1] == found[0] and kept == [3, 0]
    message = "warning: not enough GPU memory to replay CUDA graphs"
    assert capsys.readouterr().err.count(message) == 1


def test_without_memory_for_the_pass_itself_the_error_reaches_the_caller(
    folder, monkeypatch, captures
):
    trainer = trainer_of(folder, load_task(folder, "MRPC"))

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.graphs, "_loss", fail)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            trainer.step([np.arange(3)], 1e-3, (1, 0, 0))


def test_all_passes_are_on_one_stream_between_earlier_and_later_work(folder, captures, monkeypatch):
    class Stream:
        device = None

        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def entered(stream):
        current.append(stream)
        yield
        current.pop()

    log, current = [], [Stream("main")]
    trainer = trainer_of(folder, load_task(folder, "MRPC"), train=True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", entered)
    trainer.graphs._stream, compute = Stream("side"), trainer.graphs._compute

    def logged(*args):
        log.append(f"on {current[-1].name}")
        compute(*args)

    monkeypatch.setattr(trainer.graphs, "_compute", logged)
    for _ in range(3):
        trainer.step([np.arange(6)], 1e-3, (1, 0, 0))
    assert len(captures) == 1
    assert log == ["side waits for main", "on side", "main waits for side"] * 3


def test_nothing_is_collected_during_a_capture_and_a_failed_one_ends(monkeypatch):
    class Graph:
        def capture_begin(self, pool):
            log.append(f"begin in {pool}")

        def capture_end(self):
            log.append("end")
            raise RuntimeError("incomplete")

    def fail():
        assert not gc.isenabled()
        raise ZeroDivisionError

    log = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    with pytest.raises(ZeroDivisionError):
        cuda_graphs.capture(fail, "pool")
    assert gc.isenabled() and log == ["wait", "begin in pool", "end"]
    with pytest.raises(RuntimeError, match="incomplete"):
        cuda_graphs.capture(lambda: None, "pool")
    assert gc.isenabled()


def test_graphs_are_used_on_one_gpu_with_compile_only(folder, monkeypatch):
    made = []
    monkeypatch.setattr("utils.training.trainer.CudaGraphs", lambda *_: made.append(1))
    monkeypatch.setattr("utils.training.trainer.compile_layers", lambda _: None)
    monkeypatch.setattr("utils.training.trainer.nn.Module.to", lambda model, device: model)
    monkeypatch.setattr("utils.training.trainer.loss_module", lambda *_: None)
    monkeypatch.setattr("utils.training.trainer.torch.amp.GradScaler", lambda *_, **__: None)
    task, cuda = load_task(folder, "MRPC"), torch.device("cuda")
    for compiled, device, size in ((1, cuda, 1), (1, CPU, 1), (1, cuda, 2), (0, cuda, 1)):
        runtime = Runtime(device, world_size=size)
        Trainer(masked_model(folder, task), task, training(compile=bool(compiled)), runtime)
    assert made == [1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu_replayed_steps_are_the_same_with_dropout(folder, monkeypatch, name, precision):
    task, found = load_task(folder, name), []
    runtime = Runtime(torch.device("cuda"), precision)
    for limit in (0, 100):  # graphs
        monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", limit)
        model = masked_model(folder, task)
        trainer = Trainer(model, task, training(learning_rate=1e-4), runtime)
        trainer.graphs = CudaGraphs(trainer.losses, list(model.parameters()))
        seed_round(5, 0, 0)
        model.train()
        steps = [trainer.step([np.arange(k % 3, 6 + k % 3)], 1e-4, (1, 0, k)) for k in range(12)]
        found.append([(float(loss), float(norm)) for loss, norm in steps])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3)
