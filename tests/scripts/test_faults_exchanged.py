"""The flags are the same but the model, mask or data they name have changed: no run resumes."""

import json
import shutil

import launch
import pytest
import tiny
from interrupted_runs import ROUNDS, fine_tuning, glue, imp, interrupted, newest, one_shot


def assert_refused_until_restart(inputs, out, state, script, what):
    """The run ends with one line and keeps its checkpoint; --restart starts from scratch."""
    ended = script(inputs, out)
    line = ended.errors()[-1]
    assert ended.code == 2 and f"{out}: this run began with other {what}" in line
    assert "--restart" in line and newest(out) == state
    assert script(inputs, out, "--restart").code == 0
    return ended


def test_a_run_does_not_resume_with_another_model(inputs, tmp_path, at_step):
    """The run would rewind to another theta_0."""
    bert, out = shutil.copytree(inputs / "bert", tmp_path / "bert"), tmp_path / "out"

    def script(inputs, out, *more):
        return imp(inputs, out, "--model_name_or_path", bert, *more)

    state = interrupted(inputs, out, at_step, step=4, script=script)
    tiny.bert(bert, seed=1)
    ended = assert_refused_until_restart(inputs, out, state, script, "weights or another mask")
    assert len(ended.errors()) == 1


def test_a_run_does_not_resume_with_another_mask(inputs, tmp_path, at_step):
    """The rows of its results would name a mask that it has not trained with."""
    omp, out = tmp_path / "omp", tmp_path / "out"

    def script(inputs, out, *more):
        return fine_tuning(inputs, out, "--mask_dir", omp / "mask.pt", *more)

    one_shot(inputs, omp, "--method", "random", "--seed", 1)
    state = interrupted(inputs, out, at_step, step=4, script=script)
    one_shot(inputs, omp, "--method", "random", "--seed", 2, "--overwrite")
    ended = assert_refused_until_restart(inputs, out, state, script, "weights or another mask")
    assert len(ended.errors()) == 1


def change_dropout(folder):
    """In config.json: the weights are the same."""
    path = folder / "bert" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"hidden_dropout_prob": 0.3}))


def change_vocabulary(folder):
    """Exchange two WordPieces that no text has."""
    path = folder / "bert" / "vocab.txt"
    path.write_text(path.read_text().replace("(\n)\n", ")\n(\n"))


def change_dev_set(folder):
    path = folder / "MRPC" / "dev.tsv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (change_dropout, "model settings (config.json)"),
        (change_vocabulary, "WordPieces (vocab.txt)"),
        (change_dev_set, "evaluation data"),
    ],
)
@pytest.mark.parametrize("of", [imp, fine_tuning])
def test_a_run_does_not_resume_with_other_inputs(inputs, tmp_path, at_step, change, what, of):
    work = shutil.copytree(inputs, tmp_path / "inputs")
    out = tmp_path / "out"

    def script(inputs, out, *more):
        return of(work, out, *more)

    state = interrupted(inputs, out, at_step, step=4, script=script)
    change(work)
    ended = assert_refused_until_restart(inputs, out, state, script, what)
    assert len(ended.errors()) == 1


@pytest.mark.parametrize("name", ["MRPC", "squad", "text"])
def test_a_run_does_not_resume_with_other_training_data(inputs, tmp_path, at_step, name):
    data, out = shutil.copytree(inputs / name, tmp_path / name), tmp_path / "out"
    common = f"--model_name_or_path {inputs}/bert --do_train --no_cuda"
    sizes = "--max_seq_length 48 --doc_stride 16 --max_query_length 12"
    command, file = {
        "MRPC": (["LT_glue.py", *glue(inputs), "--data_dir", data], data / "train.tsv"),
        "squad": (
            f"squad_trans.py {common} --train_file {data}/train-v1.1.json {sizes}".split(),
            data / "train-v1.1.json",
        ),
        "text": (
            f"LT_pretrain.py {common} --train_data_file {data}/en.train --mlm --block_size 16"
            "".split(),
            data / "en.train",
        ),
    }[name]

    def script(inputs, out, *more):
        return launch.run(*command, "--output_dir", out, *ROUNDS, "--checkpoint_minutes", 0, *more)

    state = interrupted(inputs, out, at_step, step=4, script=script)
    if name == "squad":
        content = json.loads(file.read_text())
        content["data"][0]["paragraphs"].pop()
        file.write_text(json.dumps(content))
    else:
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:-8]))
    assert_refused_until_restart(inputs, out, state, script, "training data")
