"""The SQuAD task: its loss, its evaluation over several processes, and the files it refuses."""

import dataclasses
import json

import numpy as np
import pytest
import tiny
import torch
from transformers import BertForQuestionAnswering

from utils.config import ModelConfig, OutputConfig, SquadConfig, TrainingConfig
from utils.data import rows as rows_module
from utils.errors import UserError
from utils.modeling.bert import load_model
from utils.modeling.runtime import Runtime
from utils.tasks.squad import SquadTask

RUNTIME = Runtime(torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("squad")
    tiny.bert(path / "bert", dropout=0.0)
    tiny.squad(path)
    return path


def load(folder, train="train-v1.1.json", dev="dev-v1.1.json", do_train=True, do_eval=True, **data):
    paths = (name and str(folder / name) for name in (train, dev))
    config = SquadConfig(*paths, 48, 16, 12, do_lower_case=True, threads=1)
    return SquadTask.load(
        dataclasses.replace(config, **data),
        ModelConfig(model_name_or_path=str(folder / "bert"), cache_dir=str(folder / "cache")),
        TrainingConfig(do_train=do_train, do_eval=do_eval),
        OutputConfig(output_dir=str(folder / "out")),
    )


@pytest.fixture(scope="module")
def task(folder):
    return load(folder)


@pytest.fixture(scope="module")
def model(folder, task):
    return load_model(task.model_class, str(folder / "bert"), task.bert_config, 1).eval()


def test_the_loss_is_that_of_transformers_on_windows_of_one_length(folder, task, model):
    reference = BertForQuestionAnswering.from_pretrained(folder / "bert").eval()
    reference.qa_outputs.load_state_dict(model.qa_outputs.state_dict())
    longest = int(task.train.rows.lengths().max())
    rows = (task.train.rows.lengths() == longest).nonzero()[0][:6]
    batch = task.train_batch(rows, 0, RUNTIME)
    ids, types = (each.view(len(rows), longest) for each in (batch.packed.ids, batch.packed.types))
    with torch.no_grad():
        expected = reference(
            input_ids=ids,
            token_type_ids=types,
            start_positions=batch.labels[0].long(),
            end_positions=batch.labels[1].long(),
        ).loss
        assert task.loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("size", [2, 3, 50])
def test_processes_share_the_evaluation(task, model, monkeypatch, size):
    monkeypatch.setattr(rows_module, "EVALUATION_TOKENS", 100)
    monkeypatch.setattr(Runtime, "sum", lambda self, tensor: tensor)
    rows = task.dev[1].rows

    def logits(rank, world_size):
        runtime = dataclasses.replace(RUNTIME, rank=rank, world_size=world_size)
        return task.predict(model, rows, runtime)

    whole = logits(0, 1)
    assert len(rows_module.batches_by_length(rows)) > 3 and np.abs(whole).min() > 0
    np.testing.assert_array_equal(sum(logits(rank, size) for rank in range(size)), whole)


def test_answer_files_are_written_by_rank_0_with_the_step_in_their_name(task, model, tmp_path):
    names = ("predictions_{}.json", "nbest_predictions_{}.json", "predictions_{}.npz")
    for step, prefix in ((None, ""), (7, "7")):
        metrics = task.evaluate(model, RUNTIME, tmp_path, step)
        assert all((tmp_path / name.format(prefix)).exists() for name in names)
        with np.load(tmp_path / f"predictions_{prefix}.npz") as kept:
            assert len(kept["f1"]) == metrics["total"]
            for key in ("f1", "exact"):
                assert 100 * kept[key].mean() == pytest.approx(metrics[key])
    assert len(list(tmp_path.iterdir())) == 6
    task.evaluate(model, dataclasses.replace(RUNTIME, rank=1), tmp_path / "other", None)
    assert not (tmp_path / "other").exists()


def test_only_the_files_asked_for_are_read(folder):
    task = load(folder, dev=None, do_eval=False)
    assert task.dev is None and task.train_rows > 0
    assert load(folder, train="missing.json", do_train=False).train is None


def useless(folder, name, **changes):
    """Write a SQuAD file with one question; its answer is not in the context."""
    answers = [{"text": "absent", "answer_start": 0}]
    question = {"id": "q", "question": "?", "answers": answers, **changes.pop("question", {})}
    paragraph = {"context": "here", "qas": [question], **changes}
    (folder / name).write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    return name


def test_missing_and_useless_files_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="--do_train needs --train_file"):
        load(folder, train=None)
    with pytest.raises(UserError, match="--do_eval needs --predict_file"):
        load(folder, dev=None)
    with pytest.raises(UserError, match=r"elsewhere.json: no question has an answer"):
        load(folder, train=useless(folder, "elsewhere.json"))
    v2 = {"question": {"answers": [], "is_impossible": True}}
    with pytest.raises(UserError, match=r"empty.json: every context is empty"):
        load(
            folder,
            dev=useless(folder, "empty.json", context="", **v2),
            version_2_with_negative=True,
        )
