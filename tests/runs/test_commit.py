"""The commit of the code in every results row; a run never fails for it."""

import os
import subprocess

import glue_runs
import pytest
from launch import ROOT, done, results

from utils.runs.run import code_commit


@pytest.fixture
def repository(tmp_path):
    """A git repository with one commit, and a function that runs git there."""

    def git(*words):
        command = ["git", "-c", "user.name=n", "-c", "user.email=e", *words]
        ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        return ended.stdout.strip()

    root = tmp_path / "code"
    root.mkdir()
    git("init", "-q", "-b", "main")
    (root / "a.py").write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    return root, git


def commit(root):
    return code_commit.__wrapped__(root)


@pytest.mark.parametrize(
    "words", [[], ["pack-refs", "--all"], ["checkout", "-q", "--detach"], ["branch", "other/main"]]
)
def test_the_commit_is_read_however_git_stores_it(repository, words):
    root, git = repository
    if words:
        git(*words)
    assert commit(root) == git("rev-parse", "HEAD")
    (root / "notes.txt").touch()
    assert commit(root) == git("rev-parse", "HEAD"), "a new file is no change of the code"
    (root / "a.py").write_text("2")
    assert commit(root) == git("rev-parse", "HEAD") + "+changes"


@pytest.mark.parametrize("packed", [False, True])
def test_the_commit_of_a_worktree(repository, tmp_path, packed):
    root, git = repository
    git("worktree", "add", "-q", str(tmp_path / "tree"), "-b", "feature")
    (tmp_path / "tree" / "b.py").touch()
    git("-C", str(tmp_path / "tree"), "add", ".")
    git("-C", str(tmp_path / "tree"), "commit", "-q", "-m", "two")
    if packed:
        git("pack-refs", "--all")
    assert commit(tmp_path / "tree") == git("rev-parse", "feature") != commit(root)


def test_without_git_the_commit_is_unknown(repository, monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    assert commit(repository[0]) == "unknown"


@pytest.mark.parametrize("content", [None, b"", b"gitdir: missing", b"\xff\xfe"])
def test_an_unreadable_git_folder_is_unknown(tmp_path, content):
    if content is not None:
        (tmp_path / ".git").write_bytes(content)
    assert commit(tmp_path) == "unknown"


def test_a_branch_without_commits_is_unknown(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert commit(tmp_path) == "unknown"


def test_every_row_records_the_commit(tmp_path_factory, tmp_path):
    data = glue_runs.make_data(tmp_path_factory)
    flags = ["--do_train", "--max_steps", 1, "--dir", "pre"]
    done("glue_trans.py", *glue_runs.evaluation(data, tmp_path / "out", *flags))
    (row,) = results(tmp_path / "out")
    assert row["versions"]["commit"] == code_commit()
    assert (ROOT / ".git").exists() == (code_commit() != "unknown")
