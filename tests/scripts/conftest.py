"""What the tests of faults and of wrong input share."""

import contextlib

import interrupted_runs
import launch
import pytest
import tiny

from utils.modeling import saving
from utils.modeling.bert import SequenceClassifier, load_config, load_model
from utils.pruning import criteria, mask_files, masks
from utils.pruning.origin import Origin
from utils.training.trainer import Trainer


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model and data of every task."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny.bert(folder / "bert")
    tiny.glue(folder / "MRPC", "MRPC", train=20, dev=10)
    tiny.squad(folder / "squad", train=2, dev=2)
    tiny.text(folder / "text", train=30, valid=15)
    return folder


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """The outcome of `interrupted_runs.imp` without a fault."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert interrupted_runs.imp(inputs, out).code == 0
    return interrupted_runs.outcome(out)


@pytest.fixture
def at_step(monkeypatch):
    """A context manager that calls something before the n-th optimizer step of this process."""

    @contextlib.contextmanager
    def arrange(number, call):
        taken, original = [], Trainer.step

        def step(self, *args):
            taken.append(args)
            if len(taken) == number:
                call()
            return original(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "step", step)
            yield

    return arrange


@pytest.fixture(scope="module")
def good_inputs(tmp_path_factory):
    """Models of two and three layers, data, masks and weights; the tests corrupt copies of them."""
    folder = tmp_path_factory.mktemp("good")
    tiny.bert(folder / "bert")
    for task in ("SST-2", "STS-B", "CoLA"):
        tiny.glue(folder / task, task, train=16, dev=8)
    for layers in (2, 3):
        bert = str(tiny.bert(folder / f"bert{layers}", layers=layers, width=16))
        model = load_model(SequenceClassifier, bert, load_config(bert), 1)
        weights = {f"{name}.weight": value for name, value in masks.weights(model).items()}
        saving.save_weights(weights, folder / f"weights{layers}.pt", Origin())
        mask = criteria.magnitude(masks.weights(model), 0.5)
        mask_files.save(mask, folder / f"mask{layers}.pt", Origin())
    return folder


@pytest.fixture(scope="module")
def offline_start(tmp_path_factory):
    """Starts scripts as processes of their own that cannot reach the hub."""
    hub = str(tmp_path_factory.mktemp("hub"))
    launcher = launch.Launcher({"HF_HOME": hub, "HF_ENDPOINT": "http://127.0.0.1:9"})
    yield launcher
    launcher.close()
