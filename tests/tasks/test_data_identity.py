"""The digests that identify a task's training and development data, for every task."""

import dataclasses
import json
import re

import pytest
import tiny
from small_tasks import load_task, make_data

FILES = {
    "MRPC": ("MRPC/train.tsv", "MRPC/dev.tsv"),
    "squad": ("squad/train-v1.1.json", "squad/dev-v1.1.json"),
    "mlm": ("text/en.train", "text/en.valid"),
}


@pytest.fixture
def folder(tmp_path):
    return make_data(tmp_path, layers=1)


def change_the_middle(path):
    """Change one word in the middle for another of the same length."""
    content = path.read_text()
    word = next(re.finditer(r"\b(river|queen|house|music|light)\b", content[len(content) // 2 :]))
    at = len(content) // 2 + word.start()
    other = "water" if word[0] != "water" else "stone"
    path.write_text(content[:at] + other + content[at + 5 :])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("split", [0, 1])
def test_one_word_in_the_middle_is_another_data_set(folder, name, split):
    before = load_task(folder, name)
    again = load_task(folder, name)
    assert before.data_digest() == again.data_digest()
    assert before.dev_digest() == again.dev_digest() != ""
    change_the_middle(folder / FILES[name][split])
    after = load_task(folder, name)
    changed = (
        before.data_digest() != after.data_digest(),
        before.dev_digest() != after.dev_digest(),
    )
    assert changed == (split == 0, split == 1)


def content(task, split):
    """The rows and labels of a task's training or development set, as lists."""
    if task.name == "mlm":
        blocks = getattr(task, split)
        rows = blocks.gather(range(len(blocks)))
        return [rows[at][0].tolist() for at in range(len(rows))]
    if task.name == "squad" and split == "dev":
        return [(e.id, e.answers) for e in task.dev[0]]
    part = task.train if split == "train" else task.dev["dev"]
    ids = [part.rows[at][0].tolist() for at in range(len(part.rows))]
    return list(zip(ids, part.labels.T.tolist(), strict=True))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("by_line", [True, False])
def test_a_quick_trial_takes_the_first_rows(folder, name, by_line):
    whole = load_task(folder, name, line_by_line=by_line)
    part = load_task(folder, name, line_by_line=by_line, max_train_samples=5, max_eval_samples=3)
    for split, count in (("train", 5), ("dev", 3)):
        found, everything = content(part, split), content(whole, split)
        assert found == everything[: len(found)] and 0 < len(found) < len(everything)
        if name != "squad" or split == "dev":  # a question may have several windows
            assert len(found) == count
    assert part.data_digest() != whole.data_digest()
    assert part.dev_digest() != whole.dev_digest()
    more = {"max_train_samples": 10**6, "max_eval_samples": 10**6}
    again = load_task(folder, name, line_by_line=by_line, **more)
    assert (again.data_digest(), again.dev_digest()) == (whole.data_digest(), whole.dev_digest())


def test_another_answer_is_another_development_set(folder):
    before = load_task(folder, "squad").dev_digest()
    path = folder / FILES["squad"][1]
    document = json.loads(path.read_text())
    question = document["data"][0]["paragraphs"][0]["qas"][0]
    question["answers"][1]["text"] = question["answers"][0]["text"]
    path.write_text(json.dumps(document))
    assert load_task(folder, "squad").dev_digest() != before


@pytest.mark.parametrize("name", FILES)
def test_without_evaluation_there_is_no_development_set(folder, name):
    task = load_task(folder, name)
    without = dataclasses.replace(task, dev={} if name == "MRPC" else None)
    assert without.dev_digest() == ""


def test_the_digest_of_an_early_version_begins_that_of_mlm(folder):
    """A run of a version that digested less resumes: its value is the start of today's."""
    rows, ends, everything = load_task(folder, "mlm").data_digest().split(" ")
    assert rows.isdigit() and re.fullmatch(r"\d+:\d+", ends) and len(everything) >= 16


@pytest.mark.parametrize("name", FILES)
def test_capitals_without_lower_casing_are_reported_once_a_file(folder, name, capsys):
    settings = folder / "bert" / "tokenizer_config.json"
    settings.write_text(json.dumps({"do_lower_case": False}))
    for file in FILES[name]:
        path = folder / file
        words = "|".join(tiny.WORDS)
        path.write_text(re.sub(rf"\b({words})\b", lambda w: w[0].upper(), path.read_text()))
    load_task(folder, name, lower_case=False)
    lines = capsys.readouterr().err.splitlines()
    warnings = [line for line in lines if "[UNK]" in line]
    assert len(warnings) == 2 and all("not lower-cased" in line for line in warnings)
    for file, line in zip(FILES[name], warnings, strict=True):
        assert str(folder / file) in line
