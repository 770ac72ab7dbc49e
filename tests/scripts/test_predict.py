"""--do_predict: the files for gluebenchmark.com, from TSV files and from datasets."""

import dataclasses
import random
import shutil

import hub_data
import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset, DatasetDict
from launch import done, results, run
from refusals import assert_refused
from transformers import BertForSequenceClassification, BertTokenizer

from utils.data import glue

ROWS = 9
MNLI = "index promptID pairID genre s1_binary s2_binary s1_parse s2_parse sentence1 sentence2"
# header of the test files, columns of text, classes in the order of the head (None: a score)
TASKS = {
    "CoLA": ("index sentence", (1,), "0 1"),
    "SST-2": ("index sentence", (1,), "0 1"),
    "MRPC": ("index,#1 ID,#2 ID,#1 String,#2 String", (3, 4), "0 1"),
    "STS-B": (
        "index genre filename year old_index source1 source2 sentence1 sentence2",
        (7, 8),
        None,
    ),
    "QQP": ("id question1 question2", (1, 2), "0 1"),
    "MNLI": (MNLI, (8, 9), "contradiction entailment neutral"),
    "QNLI": ("index question sentence", (1, 2), "entailment not_entailment"),
    "RTE": ("index sentence1 sentence2", (1, 2), "entailment not_entailment"),
    "WNLI": ("index sentence1 sentence2", (1, 2), "0 1"),
}
TEST_FILES = {"MNLI": {"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"}}
TEST_FILES["MNLI-MM"] = {"test_mismatched": "MNLI-mm.tsv"}


def write_rows(path, header, texts):
    """Write a test set; its indices are not the row numbers. Return indices and texts."""
    draw, names = random.Random(path.name), header.split("," if "," in header else " ")
    rows = []
    for index in reversed(range(ROWS)):
        row = [str(index), *["x"] * (len(names) - 1)]
        for at in texts:
            row[at] = tiny.sentence(draw, 2, 24)  # some are cut off
        rows.append(row)
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join("\t".join(row) + "\n" for row in (names, *rows)))
    return [(int(row[0]), *(row[at] for at in texts)) for row in rows]


def make(folder, task):
    """Data of a task with test sets, and a model with its head; the test rows by file name."""
    name = task.removesuffix("-MM")
    header, texts, classes = TASKS[name]
    tiny.glue(folder / name, name)
    names = TEST_FILES.get(task, {"test": f"{name}.tsv"})
    rows = {
        out: write_rows(folder / name / f"{test}.tsv", header, texts) for test, out in names.items()
    }
    count = len(classes.split()) if classes else 1
    bert = tiny.bert(folder / "bert")
    torch.manual_seed(3)
    model = BertForSequenceClassification.from_pretrained(bert, num_labels=count)
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    if classes is None:
        model.classifier.bias.data += 3  # some scores lie beyond [0, 5]
    model.save_pretrained(folder / "model")
    shutil.copy(bert / "vocab.txt", folder / "model")
    return names, rows


def expected(folder, classes, rows):
    """What transformers predicts: labels, or scores in [0, 5]."""
    tokenizer = BertTokenizer.from_pretrained(folder / "bert")
    model = BertForSequenceClassification.from_pretrained(folder / "model").eval()
    found = []
    for index, *texts in rows:
        inputs = tokenizer(*texts, truncation=True, max_length=32, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        label = classes.split()[logits.argmax()] if classes else float(logits[0].clip(0, 5))
        found.append((str(index), label))
    return found


def flags(folder, out, task, *more, model="model"):
    return [
        *("--dir", "pre", "--model_name_or_path", folder / model, "--task_name", task),
        *("--output_dir", out, "--do_predict", "--do_lower_case", "--max_seq_length", 32),
        *("--no_cuda", *more),
    ]


@pytest.mark.parametrize("task", [*TASKS, "MNLI-MM"])
def test_submissions_are_the_predictions_of_transformers(tmp_path, task):
    name = task.removesuffix("-MM")
    names, rows = make(tmp_path, task)
    classes, out, hub_out = TASKS[name][2], tmp_path / "out", tmp_path / "hub_out"
    if task == "MNLI":
        ax = tmp_path / "diagnostic" / "diagnostic.tsv"
        rows["AX.tsv"] = write_rows(ax, "index sentence1 sentence2", (1, 2))
    stdout = done("glue_trans.py", *flags(tmp_path, out, task, "--data_dir", tmp_path / name))
    assert {path.name for path in out.glob("*.tsv")} == set(rows)
    assert not (out / "results.jsonl").exists()
    for file, examples in rows.items():
        assert file in stdout
        header, *lines = (line.split("\t") for line in (out / file).read_text().splitlines())
        assert header == ["index", "prediction"]
        wanted = expected(tmp_path, classes, examples)
        assert [line[0] for line in lines] == [index for index, _ in wanted]
        if classes is None:
            scores = [float(line[1]) for line in lines]
            np.testing.assert_allclose(scores, [label for _, label in wanted], atol=2e-4)
            assert {0.0, 5.0} & set(scores) and len(set(scores)) > 2
        else:
            assert [line[1] for line in lines] == [label for _, label in wanted]

    _, columns, labels = hub_data.GLUE[name]
    splits = {}
    for split, file in names.items():
        index, *texts = zip(*rows[file], strict=True)
        label = [-1] * ROWS if labels else [-1.0] * ROWS
        columns_of = {**dict(zip(columns, texts, strict=True)), "label": label, "idx": index}
        splits[split] = Dataset.from_dict(columns_of)
    dataset = hub_data.parquet(DatasetDict(splits), tmp_path / "data")
    more = ("--dataset_name", dataset, "--cache_dir", tmp_path / "cache")
    done("glue_trans.py", *flags(tmp_path, hub_out, task, *more))
    for file in names.values():
        assert (hub_out / file).read_bytes() == (out / file).read_bytes()


def test_a_training_predicts_with_its_last_model(tmp_path):
    make(tmp_path, "RTE")
    data = ("--data_dir", tmp_path / "RTE")
    train = ("--do_train", "--do_eval", "--max_steps", 4, "--learning_rate", 1e-3, *data)
    more = ("--per_gpu_train_batch_size", 8)
    trained, again = tmp_path / "trained", tmp_path / "again"
    done("glue_trans.py", *flags(tmp_path, trained, "RTE", *train, *more, model="bert"))
    assert len(results(trained)) == 1
    done("glue_trans.py", *flags(tmp_path, again, "RTE", *data, model="trained"))
    assert (again / "RTE.tsv").read_bytes() == (trained / "RTE.tsv").read_bytes()
    padded = tmp_path / "padded"
    done("glue_trans.py", *flags(tmp_path, padded, "RTE", *data, "--as_released", model="trained"))
    assert (padded / "RTE.tsv").read_bytes() == (trained / "RTE.tsv").read_bytes()


def test_a_task_of_ones_own_has_a_file_too(tmp_path, monkeypatch):
    make(tmp_path, "RTE")
    own = dataclasses.replace(glue.SPECS["rte"], name="mytask")
    monkeypatch.setattr(glue, "_ALL", (*glue.SPECS.values(), own))
    rows = {}
    for task, file in (("RTE", "RTE.tsv"), ("mytask", "predictions.tsv")):
        out = tmp_path / task.lower()
        done("glue_trans.py", *flags(tmp_path, out, task, "--data_dir", tmp_path / "RTE"))
        rows[task] = (out / file).read_text()
    assert rows["mytask"] == rows["RTE"]


BAD = {
    "missing": (None, ["RTE", "test.tsv", "no such file"]),
    "columns": ("index\tsentence1\tsentence2\n0\ta\n", ["row 2", "2 columns instead of 3"]),
    "index": ("index\tsentence1\tsentence2\nx\ta\tb\n", ["row 2", "index", "number"]),
    "no index": ("sentence1\tsentence2\na\tb\n", ["row 1", "no column 'index'"]),
    "no rows": ("index\tsentence1\tsentence2\n", ["no rows"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_test_set_is_refused_in_one_line(tmp_path, case):
    make(tmp_path, "RTE")
    content, parts = BAD[case]
    path, out = tmp_path / "RTE" / "test.tsv", tmp_path / "out"
    path.unlink() if content is None else path.write_text(content)
    ended = run("glue_trans.py", *flags(tmp_path, out, "RTE", "--data_dir", tmp_path / "RTE"))
    assert_refused(ended, "glue_trans.py", *parts)
    assert not out.exists()
