"""The generated blocks of the results: they match their rows, and one that does not is named."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launch import ROOT
from results_tree import mask_info, trainings, write_rows

from experiments import figures, report
from utils.errors import UserError

BLOCKS = """Before.
<!-- generated: tables study --only figure_sparsity --tasks rte -->
<!-- end -->
Between.
<!-- generated: figures study --only figure_sparsity --tasks rte --out pictures -->
<!-- end -->
After.
"""
needs_matplotlib = pytest.mark.skipif(not figures.INSTALLED, reason="needs matplotlib")


def ticket(seed: int) -> dict:
    return mask_info("rte", 0.5, seed)


@pytest.fixture
def page(tmp_path, monkeypatch) -> Path:
    """A Markdown file with two empty blocks, and the rows of its study in the current folder."""
    monkeypatch.chdir(tmp_path)
    rows = trainings("rte", [60.0, 62.0]) + trainings("rte", [58.0, 59.0], ticket)
    write_rows(tmp_path / "study" / "run", rows)
    path = tmp_path / "PAGE.md"
    path.write_text(BLOCKS, encoding="utf-8")
    return path


def test_every_block_of_the_results_matches_its_rows(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert report.main(["--check"]) == 0, capsys.readouterr().err


@needs_matplotlib
def test_links_to_figures_are_relative_to_their_page(page):
    below = page.parent / "docs" / "BELOW.md"
    below.parent.mkdir()
    below.write_text(BLOCKS, encoding="utf-8")
    assert report.main([str(page), str(below)]) == 0
    assert "![Score against sparsity](pictures/figure_sparsity.png)" in page.read_text()
    assert "![Score against sparsity](../pictures/figure_sparsity.png)" in below.read_text()


@needs_matplotlib
def test_blocks_are_written_from_the_rows_between_the_prose(page, capsys):
    assert report.main([str(page), "--check"]) == 1 and page.read_text() == BLOCKS
    assert capsys.readouterr().err.count("differs from its rows") == 2
    assert report.main([str(page)]) == 0
    text = page.read_text()
    assert "| RTE, IMP | 61.0 ± 1.4 (2) | 58.5 ± 0.7 (2) |" in text
    assert "![Score against sparsity](pictures/figure_sparsity.png)" in text
    assert re.sub(r"(-->\n)[^<]*(?=<!-- end)", r"\1", text) == BLOCKS, "the prose stays"
    assert report.main([str(page), "--check"]) == 0


@needs_matplotlib
def test_a_number_or_a_row_that_changes_is_found_and_named(page, monkeypatch, capsys):
    report.main([str(page)])
    page.write_text(page.read_text().replace("58.5 ± 0.7", "59.5 ± 0.7"))
    capsys.readouterr()
    assert report.main([str(page), "--check"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{page}, line 2: tables study --only figure_sparsity")
    report.main([str(page)])
    picture = (page.parent / "pictures" / "figure_sparsity.png").read_bytes()
    path = page.parent / "study" / "run" / "results.jsonl"
    path.write_text(path.read_text().replace("59.0", "59.25"))
    capsys.readouterr()
    with monkeypatch.context() as without:
        without.setattr(figures, "INSTALLED", False)
        assert report.main([str(page), "--check"]) == 1, "a check draws nothing"
        assert "figures study" in capsys.readouterr().err
        with pytest.raises(UserError, match=r"line .*matplotlib is not installed"):
            report.main([str(page)])
    report.main([str(page)])
    assert (page.parent / "pictures" / "figure_sparsity.png").read_bytes() != picture


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("<!-- generated: tables study -->\n", "has no <!-- end -->"),
        ("<!-- generated: tables study -->\n<!-- generated: text x -->\n<!-- end -->", "no <!-- e"),
        ("<!-- generated: nonsense study -->\n<!-- end -->", "line 1: 'nonsense' is no command"),
        ("<!-- generated:   -->\n<!-- end -->", "line 1: '' is no command"),
        ("<!-- generated: tables study --only x -->\n<!-- end -->", "line 1: argument --only"),
        ("<!-- generated: tables 'study -->\n<!-- end -->", "line 1: No closing quotation"),
        ("<!-- generated: text nothing -->\n<!-- end -->", "line 1: [Errno 2] No such file"),
        ("\udcff", "not UTF-8"),
        ("<!-- generated: tables nowhere -->\n<!-- end -->", "line 1: nowhere: no results.jsonl"),
    ],
)
def test_a_wrong_block_is_refused_in_one_line(page, block, message):
    page.write_bytes(block.encode(errors="surrogateescape"))
    script = [sys.executable, str(ROOT / "experiments" / "report.py"), str(page)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr
    assert page.read_bytes() == block.encode(errors="surrogateescape")


def test_the_lists_have_the_commands_that_their_readme_counts(tmp_path):
    folder = ROOT / "experiments" / "reproduce"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    words = [shutil.which("bash"), str(folder / "lists.sh"), str(tmp_path)]
    subprocess.run(words, check=True, env=os.environ | {"PATH": path}, timeout=120)
    found = {}
    for file in tmp_path.glob("*.list"):
        lines = file.read_text().splitlines()
        found[file.stem] = sum(line.startswith("python ") for line in lines)
    counted = {}
    for row in (folder / "README.md").read_text().splitlines():
        if row.startswith("| `"):
            _, names, _, _, counts, _, _ = row.split("|")
            numbers = [int(word) for word in re.findall(r"\d+", counts)]
            names = re.findall("`(.+?)`", names)
            counted |= dict(zip(names, numbers * (len(names) // len(numbers)), strict=True))
    assert found == counted
