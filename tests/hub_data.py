"""The rows of data files as datasets: with the columns, splits and labels of the hub's datasets."""

import json
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, disable_progress_bars

disable_progress_bars()
PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")
# folder of files -> config, columns of text, names of the classes in nyu-mll/glue
GLUE = {
    "CoLA": ("cola", ("sentence",), ("unacceptable", "acceptable")),
    "SST-2": ("sst2", ("sentence",), ("negative", "positive")),
    "MRPC": ("mrpc", PAIR, ("not_equivalent", "equivalent")),
    "STS-B": ("stsb", PAIR, None),
    "QQP": ("qqp", ("question1", "question2"), ("not_duplicate", "duplicate")),
    "MNLI": ("mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "QNLI": ("qnli", ("question", "sentence"), ENTAILMENT),
    "RTE": ("rte", PAIR, ENTAILMENT),
    "WNLI": ("wnli", PAIR, ("not_entailment", "entailment")),
}


def glue(folder: Path, task: str, classes: tuple[str, ...] | None = None) -> DatasetDict:
    """The files of a task as nyu-mll/glue has them; `classes`: in another order (None: its own)."""
    from utils.data.glue import find_spec

    _, columns, names = GLUE[task]
    spec, classes = find_spec(task), classes or names
    kinds = {name: Value("string") for name in columns}
    kinds["label"] = Value("float32") if names is None else ClassLabel(names=list(classes))
    splits = {}
    for file in spec.files.values():
        lines = [line.split("\t") for line in (folder / file).read_text().splitlines()]
        header = list(spec.header) if spec.header else lines.pop(0)
        texts = [name for name in (spec.text_a, spec.text_b) if name]
        rows = {
            column: [line[header.index(name)] for line in lines]
            for column, name in zip(columns, texts, strict=True)
        }
        labels = [line[header.index(spec.label)] for line in lines]
        if names is None:
            rows["label"] = [float(label) for label in labels]
        else:
            words = [names[int(label)] if label in ("0", "1") else label for label in labels]
            rows["label"] = [classes.index(word) for word in words]
        name = file.removesuffix(".tsv").replace("dev", "validation")
        splits[name] = Dataset.from_dict(rows, features=Features(kinds))
    return DatasetDict(splits)


def squad(folder: Path) -> DatasetDict:
    """train-v1.1.json and dev-v1.1.json as rajpurkar/squad has them."""
    splits = {}
    for name, split in (("train", "train"), ("dev", "validation")):
        rows = [
            {
                "id": question["id"],
                "title": article.get("title", ""),
                "context": paragraph["context"],
                "question": question["question"],
                "answers": {
                    "text": [answer["text"] for answer in question["answers"]],
                    "answer_start": [answer["answer_start"] for answer in question["answers"]],
                },
            }
            for article in json.loads((folder / f"{name}-v1.1.json").read_text())["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
        splits[split] = Dataset.from_list(rows)
    return DatasetDict(splits)


def text(folder: Path) -> DatasetDict:
    """The lines of en.train and en.valid as the rows of a column."""
    return DatasetDict(
        {
            split: Dataset.from_dict({"text": (folder / name).read_text().split("\n")[:-1]})
            for split, name in (("train", "en.train"), ("validation", "en.valid"))
        }
    )


def parquet(dataset: DatasetDict, folder: Path, data: str = "") -> Path:
    """Write SPLIT.parquet of each split, or with `data` data/SPLIT-00000-of-00001.parquet."""
    (folder / data).mkdir(parents=True, exist_ok=True)
    for split, rows in dataset.items():
        rows.to_parquet(folder / data / f"{split}{'-00000-of-00001' if data else ''}.parquet")
    return folder


def repository(folder: Path, config: str, dataset: DatasetDict) -> Path:
    """Write a dataset as a hub repository with one configuration."""
    parquet(dataset, folder, config)
    splits = "".join(f"  - split: {name}\n    path: {config}/{name}-*\n" for name in dataset)
    card = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{splits}---\n"
    (folder / "README.md").write_text(card)
    return folder
