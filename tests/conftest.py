"""Fixtures of all tests: one thread, a script's steps, reference outputs, real data."""

import logging
import os
import sys
from pathlib import Path

import pytest
import torch
from reference_runs import OWN

from utils import files
from utils.pruning import masks
from utils.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("LTH_SHARED", ROOT.parent / "shared"))


def need(condition: bool, reason: str) -> None:
    """Skip the test if `condition` does not hold; in CI with the shared folder, fail."""
    if condition:
        return
    if os.environ.get("CI") and SHARED.is_dir():
        pytest.fail(f"{reason}: CI must not skip this")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the released code's outputs on a small model."""
    return OWN


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real GLUE, SQuAD and Wikipedia text."""
    path = SHARED / "data"
    need(path.is_dir(), f"{path} (real data, not in the repository) is not on this machine")
    return path


class PlainHandler(logging.Handler):
    """Prints "warning: TEXT" on stderr."""

    def emit(self, record):
        print(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


@pytest.fixture(autouse=True)
def plain_warnings(monkeypatch):
    """Print warnings without time stamps, until a script runs in this process."""
    monkeypatch.setattr(files.log, "handlers", [PlainHandler()])
    monkeypatch.setattr(files.log, "propagate", False)
    files.log.setLevel(logging.WARNING)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use one thread: the reference used one, and the models are too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def steps(monkeypatch) -> list[dict]:
    """Every optimizer step: its learning rate and rows, and the weights and mask before it."""
    taken, original = [], Trainer.step

    def step(self, batches, learning_rate, path):
        mask = {k: v.bool().clone() for k, v in self.model.named_buffers() if k.endswith("_mask")}
        taken.append(
            {
                "rate": learning_rate,
                "rows": [row for rows in batches for row in rows.tolist()],
                "weights": masks.snapshot(self.model),
                "fresh": self.optimizer.steps == 0,
                "mask": mask,
            }
        )
        return original(self, batches, learning_rate, path)

    monkeypatch.setattr(Trainer, "step", step)
    return taken
