"""The quickstart's data: written once, and never over other files."""

import pytest
import refusals

from experiments import miniature
from utils.errors import UserError


@pytest.fixture
def small(monkeypatch):
    """A language with few sentences."""
    monkeypatch.setattr(miniature, "SENTENCES", {"en.train": 30, "en.valid": 10})
    monkeypatch.setattr(miniature, "ROWS", {"train.tsv": 20, "dev.tsv": 10})


def build(folder, seed=1):
    miniature.build(folder, miniature.Language(seed))


def test_the_same_language_changes_no_file(small, tmp_path):
    build(tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    build(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == stamps
    (tmp_path / "data" / "pretrain_data" / "en.valid").unlink()
    build(tmp_path)
    assert set(tmp_path.rglob("*")) == set(stamps)


@pytest.mark.parametrize(
    "name", ["data/glue_data/CoLA/dev.tsv", "data/pretrain_data/en.train", "bert/config.json"]
)
@pytest.mark.parametrize("content", [b"mine", b"\xff", b""])
def test_a_file_with_other_content_is_kept(small, tmp_path, name, content):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_bytes(content)
    before = refusals.content(tmp_path)
    with pytest.raises(UserError, match=f"{name}: exists with other content"):
        build(tmp_path)
    assert refusals.content(tmp_path) == before
