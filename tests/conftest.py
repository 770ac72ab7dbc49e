"""Where the tests find the reference outputs and the real data, both outside the project."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("LTH_SHARED", ROOT.parent / "shared"))


def _folder(path: Path) -> Path:
    if not path.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{path} must be there in CI")
        pytest.skip(f"{path} is not on this machine")
    return path


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the released code's outputs on a small model."""
    return _folder(SHARED / "golden")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real GLUE, SQuAD and Wikipedia text."""
    return _folder(SHARED / "data")
