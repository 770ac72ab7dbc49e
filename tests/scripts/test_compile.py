"""--compile changes no result, and flags that this machine cannot follow are refused."""

import functools
import subprocess
import sys

import launch
import pytest
import tiny
import torch

from utils.modeling.bert import compile_layers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compile")
    tiny.bert(folder / "bert", layers=3)
    tiny.glue(folder / "MRPC", "MRPC", train=40, dev=30)
    return folder


def flags(folder, out, *more):
    return [
        *("--output_dir", out, "--task_name", "MRPC", "--data_dir", folder / "MRPC"),
        *("--model_name_or_path", folder / "bert", "--do_train", "--do_eval", "--do_lower_case"),
        *("--max_seq_length", 48, "--max_steps", 6, "--save_steps", 2, "--learning_rate", 1e-3),
        *("--no_cuda", *more),
    ]


def test_a_compiled_run_leaves_the_files_of_one_without(folder, tmp_path, monkeypatch):
    torch.compiler.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr("utils.runs.run.check_compiler", lambda _: None)  # `backend` needs none
    monkeypatch.setattr(
        "utils.training.trainer.compile_layers", functools.partial(compile_layers, backend=backend)
    )
    launch.done("LT_glue.py", *flags(folder, tmp_path / "plain", "--compile", "--no_compile"))
    assert not graphs
    launch.done("LT_glue.py", *flags(folder, tmp_path / "compiled", "--compile"))
    assert graphs
    runs = [tmp_path / "plain", tmp_path / "compiled"]
    names = [
        sorted(p.relative_to(run) for p in run.rglob("*") if "tfevents" not in p.name)
        for run in runs
    ]
    assert names[0] == names[1]
    for name in names[0]:
        if name.name in ("mask.pt", "model.safetensors"):
            assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes(), name
    scores = [[row["metrics"] for row in launch.results(run)] for run in runs]
    assert scores[0] == scores[1] and len(scores[0]) == 3


@pytest.mark.parametrize(
    ("flag", "message"), [("--tf32", "--tf32 needs a GPU"), ("--compile", "needs a C++ compiler")]
)
def test_flags_that_this_machine_cannot_follow_are_refused_in_one_line(
    folder, tmp_path, monkeypatch, flag, message
):
    monkeypatch.setattr("shutil.which", lambda name: None)
    ended = launch.run("LT_glue.py", *flags(folder, tmp_path / "out", flag))
    assert ended.code == 2 and len(ended.errors()) == 1 and message in ended.err
    assert not (tmp_path / "out").exists()


def test_the_collector_is_off_for_the_imports_only():
    code = (
        "import gc\nfrom utils import cli\nwith cli.imports_without_gc():\n    import transformers"
    )
    code += "\n    off = gc.isenabled()\nprint(off, gc.isenabled(), gc.get_freeze_count() > 10_000)"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=launch.ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "False True True\n"
