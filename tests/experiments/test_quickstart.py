"""The README's first command with one seed, from end to end: output, files, claims."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent.parent
LEFT_OUT = (".*", "miniature", "runs", "docs", "tests")
CONTROLS = ("random mask", "IMP, random weights", "IMP, layers shuffled", "IMP, elements shuffled")


def quickstart(copy: Path) -> subprocess.CompletedProcess:
    words = ["bash", "experiments/quickstart.sh", "--quick", "mini"]
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(words, cwd=copy, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A separate copy of the project, in which the quickstart ran once."""
    copy = tmp_path_factory.mktemp("quickstart") / "checkout"
    left_out = shutil.ignore_patterns(*LEFT_OUT)

    def ignored(folder, names):
        return left_out(folder, names) if Path(folder) == ROOT else ["__pycache__"]

    shutil.copytree(ROOT, copy, ignore=ignored)  # LEFT_OUT at the root: utils/runs is code
    ended = quickstart(copy)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return copy, ended.stdout


def test_every_command_of_the_lists_ran_and_left_its_row(done):
    copy, _ = done
    for name in ("table2", "figure2", "connectivity"):
        lines = (copy / "mini" / f"{name}.list").read_text().splitlines()
        commands = [line for line in lines if line.startswith("python")]
        assert commands
        for line in commands:
            (folder,) = re.findall(r"--output(?:_dir)? (\S+)", line)
            assert (copy / folder).exists(), line
            if "--do_train" in line:
                assert (copy / folder / "results.jsonl").stat().st_size, line


def test_the_miniature_shows_the_papers_claims_on_masked_language_modelling(done):
    """One seed of CoLA can go either way; MLM is far from the margins."""
    copy, printed = done
    verdict = re.compile(r" *(shown|NOT shown|cannot tell)  MLM")
    lines = [line for line in printed.splitlines() if verdict.match(line)]
    shown = [line for line in lines if line.lstrip().startswith("shown")]
    assert all(any(f"MLM: {control}" in line for line in shown) for control in CONTROLS), printed
    table = copy / "mini" / "runs" / "tables" / "table2.csv"
    with open(table, newline="", encoding="utf-8") as file:
        rows = {row[0]: row[1:] for row in csv.reader(file)}
    assert rows, "table2.csv is empty"


def test_the_layer_matched_control_and_the_line_have_claims(done):
    """One seed has no deviation, so both claims stay open; their numbers are printed."""
    _, printed = done
    (control,) = re.findall(
        r"cannot tell  MLM: IMP, shuffled within matrices.*\((.*); ours", printed
    )
    (line,) = re.findall(r"cannot tell  MLM: .*stable: barrier of (.*) points in error", printed)
    assert 2 < float(control) < 20 and 0 <= float(line) < 2


def test_theta_0_learned_the_language(done):
    """A guess among the words of all classes is right less than one time in fifty."""
    copy, _ = done
    results = (copy / "mini" / "model" / "results.jsonl").read_text()
    rows = [json.loads(line) for line in results.splitlines()]
    assert rows[-1]["metrics"]["accuracy"] > 0.4


def test_the_same_command_again_finds_everything_done(done):
    copy, before = done
    stamps = {
        path: path.stat().st_mtime_ns for path in (copy / "mini" / "runs").rglob("results.jsonl")
    }
    ended = quickstart(copy)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    tables = [out.split("== Results")[1].rsplit("\n", 2)[0] for out in (ended.stdout, before)]
    assert tables[0] == tables[1]
