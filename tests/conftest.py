"""What tests share: one thread, the steps a script takes, the reference outputs and real data outside the project."""

import os
from pathlib import Path

import pytest
import torch

from utils import masks
from utils.training import Trainer

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("LTH_SHARED", ROOT.parent / "shared"))


def need(condition: bool, reason: str) -> None:
    """Skip the test where `condition` does not hold; in CI it must."""
    if not condition:
        pytest.fail(f"{reason}: not so in CI") if os.environ.get("CI") else pytest.skip(reason)


def _folder(path: Path) -> Path:
    need(path.is_dir(), f"{path} is not on this machine")
    return path


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the released code's outputs on a small model."""
    return _folder(SHARED / "golden")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real GLUE, SQuAD and Wikipedia text."""
    return _folder(SHARED / "data")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The reference was computed with one, and the models are too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def steps(monkeypatch) -> list[dict]:
    """Every optimizer step taken: its learning rate, rows, and the model and mask it started from."""
    taken, original = [], Trainer.step

    def step(self, batches, rate, place):
        taken.append(
            {
                "rate": rate,
                "rows": [row for rows in batches for row in rows.tolist()],
                "weights": masks.snapshot(self.model),
                "fresh": self.optimizer.steps == 0,
                "mask": {
                    k: v.bool().clone()
                    for k, v in self.model.named_buffers()
                    if k.endswith("_mask")
                },
            }
        )
        return original(self, batches, rate, place)

    monkeypatch.setattr(Trainer, "step", step)
    return taken
