"""The README's commands for the seven scripts, as printed there, on data that takes seconds."""

import json
import re
import shlex
import shutil

import launch
import pytest
import tiny
from launch import ROOT, results

SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
# (script, whether it trains a ticket) -> flags for ten short rounds or a short training, if the
# command counts steps
SHORTER = {
    ("LT_glue.py", False): "--save_steps 2 --max_steps 20",
    ("squad_trans.py", False): "--save_steps 2 --max_steps 20",
    ("LT_pretrain.py", False): "--save_steps 2 --max_steps 20 --block_size 32",
    ("pretrain_trans.py", True): "--max_steps 3 --block_size 32",
}


def printed() -> list[list[str]]:
    """The commands under "The seven scripts", in their order."""
    section = (ROOT / "README.md").read_text().split("## The seven scripts")[1].split("\n## ")[0]
    return [shlex.split(line) for line in re.findall(r"^ *(python .*)$", section, re.M)]


def test_the_readme_prints_a_command_for_each_of_the_seven_scripts():
    scripts = {next(word for word in words if word.endswith(".py")) for words in printed()}
    assert scripts == set(SCRIPTS) and len(scripts) == 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the commands name: a model, GLUE, SQuAD and text."""
    folder = tmp_path_factory.mktemp("readme")
    tiny.bert(folder / "bert-base-uncased", positions=512)
    tiny.glue(folder / "glue_data" / "MNLI", "MNLI")
    tiny.squad(folder / "SQuAD", train=4, dev=3)
    tiny.text(folder / "pretrain_data")
    return folder


def keep_masks(folder):
    """Copy the 70 % masks to the paths that the commands read, as a user does."""
    kept = folder / "tmp" / "dif_mask"
    kept.mkdir(parents=True)
    for name, run in (
        ("mnli", "tmp/mnli"),
        ("squad", "tmp/530/squad"),
        ("pretrain", "LT_pretrain_model"),
    ):
        shutil.copy(folder / run / "checkpoint-14" / "mask.pt", kept / f"{name}_mask.pt")


def test_the_commands_of_the_readme_run_in_their_order(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for words in printed():
        script, *flags = words[words.index("-u") + 1 :] if "-u" in words else words[1:]
        trains = "--dir" in flags
        if trains and not (folder / "tmp" / "dif_mask").exists():
            keep_masks(folder)
        ended = launch.run(script, *flags, *SHORTER.get((script, trains), "").split())
        assert ended.code == 0, (script, ended.err)
    for run, score in (
        ("tmp/mnli", "acc"),
        ("LT_pretrain_model", "accuracy"),
        ("tmp/530/squad/replaced-1", "f1"),
    ):
        tickets = json.loads((folder / run / "tickets.json").read_text())["tickets"]
        sparsities = [ticket["sparsity"] for ticket in tickets]
        assert sparsities == pytest.approx([k / 10 for k in range(1, 10)], abs=1e-3)
        rows = results(folder / run)
        assert len(rows) >= 10 and all(score in row["metrics"] for row in rows)
    for run in ("tmp/530/mnli", "tmp/530/squad", "tmp/530/pre"):
        row = results(folder / run)[-1]
        assert row["sparsity"] == pytest.approx(0.7, abs=1e-3)
        assert row["init"] == "layers" and row["final"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_each_flag_and_shows_the_defaults_that_have_a_value(script, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    ended = launch.run(script, "--help")
    entries = re.split(r"\n  (?=-)", ended.out.split("options:")[1])[1:]
    entries = [entry.split("\n\n")[0] for entry in entries]  # without the next group's title
    assert ended.code == 0 and len(entries) > 5
    assert all(re.search(r"\s{2,}\S", entry.strip()) for entry in entries)
    assert "default: None" not in ended.out and "default: False" not in ended.out
    for flag, value in (("--seed ", "42"), ("--warmup_steps ", "0")):
        found = [entry for entry in entries if entry.startswith(flag)]
        assert found == [] or f"(default: {value})" in found[0]
