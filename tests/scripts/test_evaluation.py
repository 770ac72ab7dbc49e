"""Evaluation without training: a saved subnetwork, a masked model, every checkpoint of a run."""

import shutil

import glue_runs
import interrupted_runs
import launch
import pytest
import refusals
import tiny
from glue_runs import evaluation
from launch import done, results
from safetensors.torch import load_file, save_file

from utils.runs.folder import HeldFolder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return glue_runs.make_data(tmp_path_factory)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output folder of a finished run with ten rounds; copy it before changing it."""
    return glue_runs.find_nine_tickets(tmp_path_factory)[0]


def test_a_saved_subnetwork_evaluates_to_its_recorded_score(data, finished, tmp_path):
    model, out = finished / "checkpoint-24", tmp_path / "out"
    flags = evaluation(data, out, "--dir", "pre", model=model)
    before = sorted(p.name for p in model.iterdir())
    done("glue_trans.py", *flags)
    done("glue_trans.py", *flags)  # adds a row, replaces none
    rows, expected = results(out), results(finished)[5]
    assert [row["metrics"] for row in rows] == [expected["metrics"]] * 2
    assert {row["method"] for row in rows} == {"evaluate"}
    assert sorted(p.name for p in model.iterdir()) == before
    assert not list(out.glob("*.safetensors"))


def test_evaluation_with_a_mask_scores_the_masked_model(data, finished, tmp_path):
    model = finished / "checkpoint-4"
    flags = evaluation(data, tmp_path / "out", "--dir", "pre", model=model)
    done("glue_trans.py", *flags)
    done("glue_trans.py", *flags, "--mask_dir", finished / "checkpoint-36" / "mask.pt")
    dense, masked = results(tmp_path / "out")
    assert (dense["sparsity"], round(masked["sparsity"], 3)) == (0.0, 0.9)
    assert dense["metrics"] != masked["metrics"]


def test_each_checkpoint_of_a_run_is_evaluated_on_request(data, finished):
    before = (finished / "results.jsonl").read_text()
    out = done("LT_glue.py", *evaluation(data, finished, "--eval_all_checkpoints"))
    rows = results(finished)
    (finished / "results.jsonl").write_text(before)
    trained, added = rows[:10], rows[10:]
    assert [row["step"] for row in added] == [4 * k for k in range(1, 11)]
    for old, new in zip(trained, added, strict=True):
        assert new["metrics"] == pytest.approx(old["metrics"], abs=1e-12)
        assert new["sparsity"] == old["sparsity"]
        assert new["mask_sha256"] == old["mask_sha256"]
    assert len(out.splitlines()) == 12


@pytest.mark.parametrize("content", [None, "{", '{"tickets": [{"mask": 3}]}'])
def test_checkpoints_without_an_index_of_their_masks_are_refused(data, finished, tmp_path, content):
    """A dense model would be reported."""
    folder = shutil.copytree(finished, tmp_path / "rounds")
    index, before = folder / "tickets.json", (folder / "results.jsonl").read_text()
    index.unlink()
    if content is not None:
        index.write_text(content)
    ended = launch.run("LT_glue.py", *evaluation(data, folder, "--eval_all_checkpoints"))
    (line,) = ended.errors()
    assert ended.code == 2 and f"error: {index}: " in line
    assert (folder / "results.jsonl").read_text() == before


def test_an_evaluation_waits_for_no_running_job_and_leaves_no_trace(data, finished, tmp_path):
    out = tmp_path / "out"
    flags = evaluation(data, out, "--dir", "pre", model=finished / "checkpoint-4")
    held = HeldFolder(out)
    before = refusals.content(out)
    refusals.assert_refused(launch.run("glue_trans.py", *flags), "glue_trans.py", out, "another")
    assert refusals.content(out) == before
    held.close()
    assert not out.exists()
    done("glue_trans.py", *flags)
    assert len(results(out)) == 1


def test_a_failed_evaluation_changes_nothing(data, finished, tmp_path):
    """No head for this task, or no data: neither a new folder nor that of a trained run changes."""
    flags = ["--dir", "pre", "--eval_all_checkpoints"]
    folder = shutil.copytree(finished, tmp_path / "rounds")
    for config in folder.glob("checkpoint-*/config.json"):
        config.unlink()
    before = refusals.content(folder)
    ended = launch.run("glue_trans.py", *evaluation(data, folder, *flags))
    refusals.assert_refused(ended, "glue_trans.py", "has kept its model")
    missing = ["--dir", "pre", "--data_dir", data / "missing"]
    for out in (folder, tmp_path / "new"):
        assert launch.run("glue_trans.py", *evaluation(data, out, *missing)).code == 2
    assert refusals.content(folder) == before and not (tmp_path / "new").exists()


def test_an_evaluation_in_the_folder_of_a_stopped_job_keeps_its_files(data, tmp_path, at_step):
    out, kept = tmp_path / "out", ("state-", "checkpoint-", "run.json", ".half.tmp")
    train = glue_runs.command(data, out, "--max_steps", 6, "--save_steps", 2)
    with at_step(5, interrupted_runs.terminate):
        assert launch.run("LT_glue.py", *train).code == 75
    (out / ".half.tmp").touch()

    def state():
        return {k: v for k, v in refusals.content(out).items() if k.startswith(kept)}

    before = state()
    done("LT_glue.py", *evaluation(data, out, "--eval_all_checkpoints"))
    assert state() == before
    assert [row["method"] for row in results(out)] == ["imp"] * 2 + ["evaluate"] * 2
    done("LT_glue.py", *train)


def test_checkpoints_of_another_task_or_without_models_are_refused(data, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "rounds")
    flags = evaluation(data, folder, "--dir", "pre", "--eval_all_checkpoints")
    for checkpoint in folder.glob("checkpoint-*"):
        file = checkpoint / "model.safetensors"
        weights = load_file(file)
        save_file({name: w for name, w in weights.items() if "classifier" not in name}, file)
    before = (folder / "results.jsonl").read_text()

    def assert_refused(reason):
        ended = launch.run("glue_trans.py", *flags)
        (line,) = ended.errors()
        assert ended.code == 2 and reason in line
        assert (folder / "results.jsonl").read_text() == before

    name = "checkpoint-4: classifier.bias is missing; this checkpoint belongs to another task"
    assert_refused(name)
    for config in folder.glob("checkpoint-*/config.json"):
        config.unlink()
    assert_refused("has kept its model")


@pytest.mark.parametrize(
    "flags", [("--dir", "pre"), ("--dir", "rand"), ("--eval_all_checkpoints",)]
)
def test_weights_that_nobody_trained_are_not_scored(data, tmp_path, flags):
    out = tmp_path / "out"
    out.mkdir()
    (out / "eval_results.txt").write_text("pearson = 0.9\n")
    script = "glue_trans.py" if "--dir" in flags else "LT_glue.py"
    ended = launch.run(script, *evaluation(data, out, *flags))
    missing = "every weight of --dir rand" if "rand" in flags else "classifier.bias, classifier.w"
    refusals.assert_refused(ended, script, data / "bert", "missing", missing, "--do_train")
    assert [path.name for path in out.iterdir()] == ["eval_results.txt"]
    assert (out / "eval_results.txt").read_text() == "pearson = 0.9\n"


def test_a_head_of_another_number_of_classes_is_not_scored(data, finished, tmp_path):
    flags = evaluation(data, tmp_path / "out", "--dir", "pre", task="MRPC", model=finished)
    flags[flags.index(finished)] = finished / "checkpoint-4"
    ended = launch.run("glue_trans.py", *flags)
    refusals.assert_refused(ended, "glue_trans.py", "missing", "classifier.bias", "--do_train")
    assert not (tmp_path / "out").exists()


def test_training_reports_a_new_mlm_head(data, tmp_path):
    encoder = tiny.bert(tmp_path / "encoder")
    weights = load_file(encoder / "model.safetensors")
    weights = {name: w for name, w in weights.items() if name.startswith("bert.")}
    save_file(weights, encoder / "model.safetensors", metadata={"format": "pt"})
    text = tiny.text(tmp_path) / "en.train"
    flags = ["--dir", "pre", "--mlm", "--train_data_file", text, "--max_steps", 1, "--do_train"]
    flags += ["--block_size", 32, "--no_cuda", "--cache_dir", tmp_path / "cache"]
    for source, warned in ((encoder, True), (data / "bert", False)):
        out = tmp_path / f"out-{warned}"
        given = ["--model_name_or_path", source, "--output_dir", out]
        ended = launch.run("pretrain_trans.py", *flags, *given)
        assert ended.code == 0
        assert ["no MLM head; it is drawn by --seed 42" in e for e in ended.errors()] == [
            True
        ] * warned
