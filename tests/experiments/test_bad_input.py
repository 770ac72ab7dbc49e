"""The programs of experiments/ end in one line for bad input, and overwrite nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
from results_tree import small_mask, trainings, write_rows

from experiments import miniature
from utils.errors import UserError
from utils.pruning import mask_files
from utils.pruning.origin import Origin

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Results, a mask, and files that are neither."""
    folder = tmp_path_factory.mktemp("tree")
    write_rows(folder / "runs", trainings("rte", [60.0]))
    mask_files.save(small_mask(0.5, 1), folder / "mask.pt", Origin())
    (folder / "empty").mkdir()
    (folder / "folders" / "results.jsonl").mkdir(parents=True)
    (folder / "file").write_text("mine")
    (folder / "null.list").write_text("python x.py --output_dir a\0b\n")
    (folder / "latin.list").write_bytes(b"python x.py --output_dir \xe9\n")
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tables.py missing", "no results.jsonl below it"),
        ("tables.py empty", "no results.jsonl below it"),
        ("tables.py file", "no results.jsonl below it"),
        ("tables.py folders", "results.jsonl: Is a directory"),
        ("tables.py runs --out file", "file: File exists"),
        ("tables.py runs --only x", "argument --only"),
        ("tables.py runs --sparsity nan", "--sparsity nan"),
        ("tables.py", "required: folder"),
        ("figures.py missing", "no results.jsonl below it"),
        ("verdict.py missing", "no results.jsonl below it"),
        ("verdict.py runs --tasks x", "'x' is no task"),
        ("overlap.py mask.pt missing", "missing: no such mask file"),
        ("overlap.py mask.pt empty", "empty/mask.safetensors: no such file"),
        ("overlap.py file mask.pt", "file: "),
        ("export_ticket.py missing out --model x", "x"),
        ("export_ticket.py mask.pt empty --model x", "empty: exists already"),
        ("miniature.py file", "file"),
        ("joblist.py missing", "missing: cannot read the list"),
        ("joblist.py empty", "empty: cannot read the list"),
        ("joblist.py null.list", "null.list: cannot read the list"),
        ("joblist.py latin.list", "latin.list: cannot read the list"),
        ("joblist.py file --jobs x", "argument --jobs"),
        ("plan.py table9", "argument what"),
        ("plan.py table2 --seeds 1e9", "argument --seeds"),
        ("plan.py missing --estimate", "missing: cannot read the list"),
        ("plan.py file --estimate", "file, line 1"),
        ("tables.py missing --statistics", "no results.jsonl below it"),
        ("connectivity.py runs", "required: run_b"),
        ("connectivity.py runs runs --points x", "argument --points"),
        ("connectivity.py runs runs --points 2", "--points 2"),
        ("connectivity.py missing empty", "missing: no finished training"),
        ("connectivity.py file file", "file: "),
        ("connectivity.py folders folders", "folders"),
        ("collect.py missing new", "missing: no finished run"),
        ("collect.py empty new", "empty: no finished run"),
        ("collect.py folders folders", "folders"),
        ("collect.py runs file", "file: not a collected file"),
        ("collect.py runs empty", "runs: no finished run"),
        ("report.py missing", "missing: no such file"),
        ("report.py empty", "empty: no such file"),
    ],
)
def test_bad_input_ends_in_one_line(tree, words, message):
    before = sorted(tree.rglob("*"))
    command = [sys.executable, str(ROOT / "experiments" / words.split()[0]), *words.split()[1:]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tree, timeout=120)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert done.stderr.count("\n") == 1 and message in done.stderr, done.stderr
    assert sorted(tree.rglob("*")) == before and (tree / "file").read_text() == "mine"


def test_the_miniature_overwrites_no_other_file(tmp_path):
    words = miniature.Language(1)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("mine\n")
    with pytest.raises(UserError, match=r"bert/vocab\.txt: exists with other content"):
        miniature.build(tmp_path, words)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["vocab.txt"]
