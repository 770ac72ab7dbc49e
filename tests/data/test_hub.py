"""Datasets give what files with the same rows give: features, labels, WordPieces and masks."""

import dataclasses

import hub_data
import numpy as np
import pytest
import tiny
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, concatenate_datasets
from launch import run
from refusals import assert_refused

from utils.config import (
    GlueConfig,
    ModelConfig,
    OutputConfig,
    SquadConfig,
    TextConfig,
    TrainingConfig,
)
from utils.data import hub
from utils.data.glue import GlueSpec
from utils.tasks.glue import GlueTask
from utils.tasks.mlm import MlmTask
from utils.tasks.squad import SquadTask

BOTH = TrainingConfig(do_train=True, do_eval=True)
MNLI_ORDERS = [
    ("entailment", "neutral", "contradiction"),
    ("neutral", "contradiction", "entailment"),
]


@pytest.fixture(scope="module", autouse=True)
def hf_cache(tmp_path_factory):
    """Keep the library's cache within the test's folders."""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = str(tmp_path_factory.mktemp("hf"))
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    tiny.bert(folder / "bert")
    for task in hub_data.GLUE:
        tiny.glue(folder / task, task)
    tiny.squad(folder / "squad")
    tiny.squad(folder / "squad2", impossible=True)
    tiny.text(folder / "text")
    return folder


def loaded(cls, data, inputs, cache):
    model = ModelConfig(model_name_or_path=str(inputs / "bert"), cache_dir=str(cache))
    return cls.load(data, model, BOTH, OutputConfig(output_dir="unused"))


def assert_same_rows(one, other):
    for field in ("ids", "types", "starts"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def assert_same_glue(one, other):
    for mine, theirs in ((one.train, other.train), *((one.dev[k], other.dev[k]) for k in one.dev)):
        assert_same_rows(mine.rows, theirs.rows)
        np.testing.assert_array_equal(mine.labels, theirs.labels)
        assert mine.labels.dtype == theirs.labels.dtype
    assert one.dev.keys() == other.dev.keys() and one.data_digest() == other.data_digest()


def glue_task(inputs, tmp_path, task, **data):
    config = GlueConfig(task, max_seq_length=32, do_lower_case=True, **data)
    return loaded(GlueTask, config, inputs, tmp_path / "cache")


TRIAL = {"max_train_samples": 3, "max_eval_samples": 2}


# ---- GLUE


@pytest.mark.parametrize("limits", [{}, TRIAL], ids=["all", "trial"])
@pytest.mark.parametrize("task", [*hub_data.GLUE, "MNLI-MM"])
def test_glue_rows_are_those_of_the_files(inputs, tmp_path, task, limits):
    folder = task.removesuffix("-MM")
    from_files = glue_task(inputs, tmp_path, task, data_dir=str(inputs / folder), **limits)
    dataset = hub_data.parquet(hub_data.glue(inputs / folder, folder), tmp_path / "data")
    from_hub = glue_task(inputs, tmp_path, task, dataset_name=str(dataset), **limits)
    assert_same_glue(from_files, from_hub)
    if limits:
        counts = {len(from_hub.train.labels), *(len(dev.labels) for dev in from_hub.dev.values())}
        assert counts == {3, 2}


LAYOUTS = {
    "parquet": hub_data.parquet,
    "sharded": lambda dataset, folder: hub_data.parquet(dataset, folder, "data"),
    "repository": lambda dataset, folder: hub_data.repository(folder, "mnli", dataset),
    "save_to_disk": lambda dataset, folder: dataset.save_to_disk(folder) or folder,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", MNLI_ORDERS, ids=lambda names: names[0])
def test_classes_are_matched_by_name_in_every_layout(inputs, tmp_path, layout, classes):
    from_files = glue_task(inputs, tmp_path, "MNLI", data_dir=str(inputs / "MNLI"))
    dataset = hub_data.glue(inputs / "MNLI", "MNLI", classes)
    folder = LAYOUTS[layout](dataset, tmp_path / "data")
    assert_same_glue(from_files, glue_task(inputs, tmp_path, "MNLI", dataset_name=str(folder)))


@pytest.mark.parametrize("layout", ["parquet", "save_to_disk"])
def test_each_split_may_have_its_own_order_of_classes(inputs, tmp_path, layout):
    from_files = glue_task(inputs, tmp_path, "MNLI", data_dir=str(inputs / "MNLI"))
    one, other = (hub_data.glue(inputs / "MNLI", "MNLI", classes) for classes in MNLI_ORDERS)
    folder = LAYOUTS[layout](DatasetDict(other, train=one["train"]), tmp_path / "data")
    assert_same_glue(from_files, glue_task(inputs, tmp_path, "MNLI", dataset_name=str(folder)))


def without_names(dataset, kind):
    """Labels as plain integers of the hub's order, or as words."""
    found = {}
    for split, rows in dataset.items():
        names = rows.features["label"].names
        labels = [label if kind is int else names[label] for label in rows["label"]]
        texts = {name: rows[name] for name in rows.column_names if name != "label"}
        found[split] = Dataset.from_dict({**texts, "label": labels})
    return DatasetDict(found)


@pytest.mark.parametrize("kind", [int, str])
@pytest.mark.parametrize("task", ["MNLI", "QNLI", "WNLI", "MRPC"])
def test_labels_without_names_are_in_the_hubs_order(inputs, tmp_path, task, kind):
    from_files = glue_task(inputs, tmp_path, task, data_dir=str(inputs / task))
    dataset = without_names(hub_data.glue(inputs / task, task), kind)
    folder = hub_data.parquet(dataset, tmp_path / "data")
    assert_same_glue(from_files, glue_task(inputs, tmp_path, task, dataset_name=str(folder)))


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        (ClassLabel(names=["positive", "negative"]), [0, 1]),
        (Value("int64"), [1, 0]),
        (Value("string"), ["positive", "negative"]),
    ],
)
def test_a_task_of_your_own_reads_a_dataset(kind, labels):
    spec = GlueSpec("mytask", ("negative", "positive"), "sentence", None)
    columns = Features({"sentence": Value("string"), "label": kind})
    rows = Dataset.from_dict({"sentence": ["good", "bad"], "label": labels}, columns)
    examples = hub.read_glue(spec, hub.Dataset("mine", {"train": rows}), "train")
    assert (examples.text_a, [*examples.labels]) == (["good", "bad"], [1, 0])


def test_one_round_of_imp_finds_the_same_mask(inputs, tmp_path):
    dataset = hub_data.parquet(hub_data.glue(inputs / "MNLI", "MNLI"), tmp_path / "data")
    masks = []
    for flags in (["--data_dir", inputs / "MNLI"], ["--dataset_name", dataset]):
        out = tmp_path / flags[0].strip("-")
        flags += ["--task_name", "MNLI", "--model_name_or_path", inputs / "bert", "--no_cuda"]
        flags += ["--do_train", "--do_lower_case", "--max_seq_length", 32, "--learning_rate", 1e-3]
        flags += ["--sparsities", 0.3, "--max_steps", 8, "--save_steps", 4, "--output_dir", out]
        ended = run("LT_glue.py", *flags, "--cache_dir", tmp_path / "cache")
        assert ended.code == 0, ended.err
        masks.append((out / "checkpoint-4" / "mask.pt").read_bytes())
    assert masks[0] == masks[1]


# ---- SQuAD


@pytest.mark.parametrize("layout", ["parquet", "save_to_disk"])
@pytest.mark.parametrize(("name", "limits"), [("squad", {}), ("squad2", {}), ("squad", TRIAL)])
def test_squad_windows_are_those_of_the_files(inputs, tmp_path, name, limits, layout):
    config = SquadConfig(
        **limits,
        train_file=str(inputs / name / "train-v1.1.json"),
        predict_file=str(inputs / name / "dev-v1.1.json"),
        max_seq_length=48,
        doc_stride=16,
        max_query_length=12,
        do_lower_case=True,
        version_2_with_negative=name == "squad2",
    )
    folder = LAYOUTS[layout](hub_data.squad(inputs / name), tmp_path / "data")
    other = dataclasses.replace(
        config, train_file=None, predict_file=None, dataset_name=str(folder)
    )
    one, two = (loaded(SquadTask, each, inputs, tmp_path / "cache") for each in (config, other))
    assert_same_rows(one.train.rows, two.train.rows)
    np.testing.assert_array_equal(one.train.labels, two.train.labels)
    assert one.dev[0] == two.dev[0]
    for key, value in vars(one.dev[1]).items():
        np.testing.assert_array_equal(value, getattr(two.dev[1], key))


# ---- text

ODD = [
    "",
    " = A heading = \n",
    "one\nline and\ttwo\r\n",
    "caf\u00e9 \u3000 x" * 50,
    "\x0bend",
    "b" * 90,
]


def text_task(inputs, tmp_path, by_lines, **data):
    config = TextConfig(mlm=True, block_size=16, line_by_line=by_lines, threads=1, **data)
    return loaded(MlmTask, config, inputs, tmp_path / "cache")


def assert_same_text(one, two):
    for mine, theirs in ((one.train, two.train), (one.dev, two.dev)):
        everything = np.arange(len(mine))
        assert len(mine) == len(theirs)
        assert_same_rows(mine.gather(everything), theirs.gather(everything))
        np.testing.assert_array_equal(mine.ids, theirs.ids)


@pytest.mark.parametrize("layout", ["parquet", "save_to_disk"])
@pytest.mark.parametrize("by_lines", [False, True])
def test_a_text_column_gives_the_wordpieces_of_a_file(
    inputs, tmp_path, monkeypatch, layout, by_lines
):
    monkeypatch.setattr("utils.data.text.PIECE_BYTES", 200)  # many pieces
    monkeypatch.setattr("utils.data.hub._ROWS", 7)
    dataset = hub_data.text(inputs / "text")
    extra = Dataset.from_dict({"text": ODD})
    dataset["train"] = concatenate_datasets([dataset["train"], extra])
    for split, name in (("train", "en.train"), ("validation", "en.valid")):
        content = "".join(f"{row}\n" for row in dataset[split]["text"])
        (tmp_path / name).write_bytes(content.encode())
    files = {"train_data_file": tmp_path / "en.train", "eval_data_file": tmp_path / "en.valid"}
    folder = LAYOUTS[layout](dataset, tmp_path / "data")
    one = text_task(inputs, tmp_path, by_lines, **{key: str(file) for key, file in files.items()})
    two = text_task(inputs, tmp_path, by_lines, dataset_name=str(folder))
    assert_same_text(one, two)


@pytest.mark.parametrize("percent", [None, 40.0])
def test_without_a_validation_split_the_first_training_rows_become_one(inputs, tmp_path, percent):
    rows = hub_data.text(inputs / "text")["train"]
    count = round(len(rows) * (percent or 5) / 100)
    halves = DatasetDict(train=rows.select(range(count, len(rows))))
    halves["validation"] = rows.select(range(count))
    expected = hub_data.parquet(halves, tmp_path / "halves")
    whole = hub_data.parquet(DatasetDict(train=rows), tmp_path / "whole")
    one = text_task(inputs, tmp_path, False, dataset_name=str(expected))
    share = {"validation_split_percentage": percent}
    two = text_task(inputs, tmp_path, False, dataset_name=str(whole), **share)
    assert_same_text(one, two)


def test_a_changed_dataset_is_noticed(inputs, tmp_path):
    dataset = hub_data.text(inputs / "text")
    folder = hub_data.parquet(dataset, tmp_path / "data")
    one = text_task(inputs, tmp_path, False, dataset_name=str(folder))
    backwards = [text[::-1] for text in dataset["train"]["text"]]
    hub_data.parquet(DatasetDict(train=Dataset.from_dict({"text": backwards})), folder)
    two = text_task(inputs, tmp_path, False, dataset_name=str(folder))
    assert not np.array_equal(one.train.ids[:50], two.train.ids[:50])
    assert one.data_digest() != two.data_digest()


# ---- refusals


def change(column, number, value):
    """A function that changes one value of the training rows."""

    def changed(dataset):
        rows = {name: list(dataset["train"][name]) for name in dataset["train"].column_names}
        rows[column][number] = value
        return DatasetDict(dataset, train=Dataset.from_dict(rows))

    return changed


def rename(old, new):
    return lambda dataset: DatasetDict({k: v.rename_column(old, new) for k, v in dataset.items()})


def drop(split):
    return lambda dataset: DatasetDict({k: v for k, v in dataset.items() if k != split})


REFUSED = {
    "no label": ("MRPC", change("label", 3, -1), ["train row 3", "'-1'", "one of 0, 1"]),
    "a wrong class": ("MNLI", change("label", 3, 3), ["train row 3", "contradiction"]),
    "no score": ("STS-B", change("label", 3, float("nan")), ["train row 3", "finite"]),
    "no text": ("RTE", change("sentence2", 5, None), ["train row 5", "sentence2"]),
    "no column": ("RTE", rename("sentence2", "b"), ["no column 'sentence2'", "'b'"]),
    "no split": ("RTE", drop("validation"), ["no split 'validation'", "train"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_dataset_is_refused_in_one_line(inputs, tmp_path, case):
    task, changed, parts = REFUSED[case]
    folder = hub_data.parquet(changed(hub_data.glue(inputs / task, task)), tmp_path / "data")
    flags = ["--task_name", task, "--dataset_name", folder, "--do_train", "--do_eval"]
    flags += ["--model_name_or_path", inputs / "bert", "--do_lower_case", "--max_seq_length", 32]
    flags += ["--output_dir", tmp_path / "out", "--cache_dir", tmp_path / "cache"]
    ended = run("LT_glue.py", *flags)
    assert_refused(ended, "LT_glue.py", folder, *parts)
    assert not (tmp_path / "out").exists()


def test_rows_of_qqp_without_a_text_are_left_out_with_a_warning(inputs, tmp_path, capfd):
    dataset = hub_data.glue(inputs / "QQP", "QQP")
    torn = change("question2", 4, None)(dataset)
    whole = DatasetDict(dataset, train=dataset["train"].select([0, 1, 2, 3, *range(5, 32)]))
    one, two = (
        glue_task(
            inputs, tmp_path, "QQP", dataset_name=str(hub_data.parquet(each, tmp_path / name))
        )
        for each, name in ((torn, "torn"), (whole, "whole"))
    )
    assert_same_glue(one, two)
    assert "left out: 4" in capfd.readouterr().err


BAD_FOLDERS = {
    "empty": (lambda folder: folder.mkdir(), ["--dataset_name"]),
    "corrupt": (
        lambda folder: (folder.mkdir(), (folder / "train.parquet").write_bytes(b"PAR1 no")),
        ["--dataset_name"],
    ),
    "text": (
        lambda folder: (folder.mkdir(), (folder / "dataset_dict.json").write_text("{")),
        ["--dataset_name"],
    ),
    "missing": (lambda folder: None, ["--dataset_name", "no such folder"]),
    "one split": (
        lambda folder: Dataset.from_dict({"text": ["a"]}).save_to_disk(folder),
        ["--dataset_name", "save a DatasetDict"],
    ),
    "another column": (
        lambda folder: (
            hub_data.parquet(DatasetDict(train=Dataset.from_dict({"txt": ["a"]})), folder),
            hub_data.parquet(DatasetDict(validation=Dataset.from_dict({"text": ["a"]})), folder),
        ),
        ["has no column 'text'", "train"],
    ),
    "blank": (
        lambda folder: hub_data.parquet(
            DatasetDict(dict.fromkeys(("train", "validation"), Dataset.from_dict({"text": [" "]}))),
            folder,
        ),
        ["train: has 0 WordPieces"],
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_folder_that_is_no_dataset_is_refused_in_one_line(inputs, tmp_path, case):
    make, parts = BAD_FOLDERS[case]
    make(tmp_path / "data")
    flags = ["--dataset_name", tmp_path / "data", "--mlm", "--do_train", "--dir", "pre"]
    flags += ["--model_name_or_path", inputs / "bert", "--output_dir", tmp_path / "out"]
    assert_refused(run("pretrain_trans.py", *flags), "pretrain_trans.py", *parts, tmp_path / "data")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_has_no_configurations(inputs, tmp_path, layout):
    folder = LAYOUTS[layout](hub_data.glue(inputs / "RTE", "RTE"), tmp_path / "data")
    flags = ["--dataset_name", folder, "--dataset_config_name", "nonsense", "--task_name", "RTE"]
    flags += ["--do_train", "--model_name_or_path", inputs / "bert", "--output_dir", tmp_path / "o"]
    flags += ["--max_seq_length", 32]
    assert_refused(run("LT_glue.py", *flags), "LT_glue.py", folder, "'nonsense'", "dataset_config")


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("glue_trans.py", ["--task_name", "RTE", "--data_dir", "d"]),
        ("squad_trans.py", ["--predict_file", "f"]),
        ("pretrain_trans.py", ["--mlm", "--train_data_file", "f"]),
    ],
)
def test_files_and_a_dataset_exclude_each_other(script, flags):
    flags = [*flags, "--dataset_name", "d", "--dir", "pre", "--do_train", "--output_dir", "o"]
    assert_refused(run(script, *flags), script, flags[-8], "--dataset_name", "exclude")


SQUAD_REFUSED = {
    "no context": (change("context", 1, None), ["train row 1", "'context'"]),
    "no answer in v1.1": (
        change("answers", 1, {"text": [], "answer_start": []}),
        ["train row 1", "--version_2_with_negative"],
    ),
    "no answers": (rename("answers", "spans"), ["no column 'answers'", "'spans'"]),
    "an answer elsewhere": (
        change("answers", 1, {"text": ["x"], "answer_start": [9999]}),
        ["train row 1", "answer_start 9999"],
    ),
    "one text, two starts": (
        change("answers", 1, {"text": ["x"], "answer_start": [0, 4]}),
        ["train row 1", "1 text and 2 answer_start"],
    ),
    "one id twice": (change("id", 1, "train-0-0"), ["two questions", "train-0-0"]),
}


@pytest.mark.parametrize("case", SQUAD_REFUSED)
def test_wrong_questions_are_refused_in_one_line(inputs, tmp_path, case):
    changed, parts = SQUAD_REFUSED[case]
    folder = hub_data.parquet(changed(hub_data.squad(inputs / "squad")), tmp_path / "data")
    flags = ["--dataset_name", folder, "--do_train", "--dir", "pre", "--do_lower_case"]
    flags += ["--max_seq_length", 48, "--doc_stride", 16, "--max_query_length", 12]
    flags += ["--model_name_or_path", inputs / "bert", "--output_dir", tmp_path / "out"]
    assert_refused(run("squad_trans.py", *flags), "squad_trans.py", folder, *parts)
