"""A GLUE task reads what the run needs, trains and scores; other models and data are refused."""

import json

import numpy as np
import pytest
import tiny
import torch

from utils.config import GlueConfig, ModelConfig, OutputConfig, TrainingConfig
from utils.errors import UserError
from utils.modeling.bert import load_model
from utils.modeling.runtime import Runtime
from utils.tasks.glue import GlueTask
from utils.tasks.metrics import glue_metrics

RUNTIME = Runtime(torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glue")
    tiny.bert(folder / "bert")
    for name in ("MNLI", "STS-B"):
        tiny.glue(folder / name, name)
    return folder


def load(folder, name, data=None, length=24, model="bert", **training):
    return GlueTask.load(
        GlueConfig(name, str(folder / (data or name)), length, do_lower_case=True),
        ModelConfig(model_name_or_path=str(folder / model)),
        TrainingConfig(**(training or {"do_train": True, "do_eval": True})),
        OutputConfig(output_dir=str(folder / "out")),
    )


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("MNLI", {"acc", "acc_mm"}),
        ("MNLI-MM", {"acc"}),
        ("STS-B", {"pearson", "spearmanr", "corr"}),
    ],
)
def test_a_task_gives_batches_their_loss_and_metrics(folder, tmp_path, name, keys):
    task = load(folder, name, name.removesuffix("-MM"))
    model = load_model(task.model_class, str(folder / "bert"), task.bert_config, 1)
    rows = np.array([3, 0, 8])
    batch = task.train_batch(rows, 0, RUNTIME)
    assert task.row_lengths(rows).tolist() == batch.packed.lengths.tolist() and batch.total == 3
    assert batch.labels.dtype == (torch.float32 if name == "STS-B" else torch.int64)
    assert task.loss(model, batch).isfinite() and task.train_rows == 32
    metrics = task.evaluate(model, RUNTIME, tmp_path, None)
    assert metrics.keys() == keys and task.score_key in keys
    with np.load(tmp_path / "predictions_.npz") as kept:  # of MNLI, the matched set
        own = glue_metrics(task.score_key, kept["predictions"], kept["labels"])
        assert own[task.score_key] == metrics[task.score_key]
        assert str(kept["metric"]) == task.score_key
    assert len(list(tmp_path.iterdir())) == 1


def test_logits_do_not_depend_on_the_other_rows_of_a_batch(folder):
    task = load(folder, "MNLI")
    model = load_model(task.model_class, str(folder / "bert"), task.bert_config, 1).eval()
    logits = task.predict(model, task.train.rows, RUNTIME)
    assert logits.shape == (32, 3) and logits.dtype == np.float32
    for row in (0, 7, 31):
        alone = task.logits(model, task.train_batch(np.array([row]), 0, RUNTIME).packed)
        np.testing.assert_allclose(alone.detach().numpy()[0], logits[row], atol=1e-6)


def test_only_the_files_that_the_run_needs_are_read(folder, tmp_path):
    for split, flags in (("train", {"do_train": True}), ("dev", {"do_eval": True})):
        data = tmp_path / split
        data.mkdir()
        (data / f"{split}.tsv").write_bytes((folder / "STS-B" / f"{split}.tsv").read_bytes())
        task = load(folder, "STS-B", data, **flags)
        assert (task.train is None, list(task.dev)) == ((False, []), (True, ["dev"]))[
            split == "dev"
        ]
    with pytest.raises(AssertionError, match="loaded without do_train"):
        _ = task.train_rows


def test_the_digest_identifies_the_training_data(folder, tmp_path):
    digest = load(folder, "STS-B").data_digest()
    assert load(folder, "STS-B").data_digest() == digest
    assert load(folder, "STS-B", tiny.glue(tmp_path, "STS-B", seed=1)).data_digest() != digest


def test_a_length_or_vocabulary_beyond_the_model_is_refused(folder):
    with pytest.raises(UserError, match=r"--max_seq_length 65 .*64"):
        load(folder, "STS-B", length=65)
    small = tiny.bert(folder / "small")
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "vocab_size": 9}))
    with pytest.raises(UserError, match=r"--tokenizer_name: .*9"):
        load(folder, "STS-B", model="small")
