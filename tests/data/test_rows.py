"""Digests of rows and labels, and the warning about unknown tokens."""

from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizer

from utils.data import rows
from utils.data.rows import LabelledRows, Rows, warn_of_unknown

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
UNKNOWN, CLS, SEP = 1, 2, 3


def tokenizer_of(words, lower):
    vocabulary = {piece: number for number, piece in enumerate([*SPECIALS, *words])}
    return BertTokenizer(vocab=vocabulary, do_lower_case=lower)


UNCASED = ["cat", "the"]


@pytest.mark.parametrize(
    "lower, case", [(False, "text is not lower-cased"), (True, "text is lower-cased")]
)
def test_the_warning_names_file_figure_and_case(capsys, lower, case):
    ids = np.array([CLS, *([5] * 88), *([UNKNOWN] * 12), SEP])
    warn_of_unknown(Path("train.tsv"), tokenizer_of(UNCASED, lower), ids)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: train.tsv: 12.0% of the tokens are unknown ([UNK])")
    assert case in line and "--do_lower_case" in line


@pytest.mark.parametrize("dtype", [np.int32, np.uint16])
@pytest.mark.parametrize("unknown, lines", [(0, 0), (5, 0), (6, 1)])
def test_up_to_five_percent_are_not_reported(capsys, monkeypatch, dtype, unknown, lines):
    ids = np.array([*([5] * (100 - unknown)), *([UNKNOWN] * unknown), *([CLS, SEP] * 40)], dtype)
    warn_of_unknown(Path("text"), tokenizer_of(UNCASED, False), ids)
    assert len(capsys.readouterr().err.splitlines()) == lines
    warn_of_unknown(Path("text"), tokenizer_of(UNCASED, False), ids[:0])
    assert capsys.readouterr().err == ""


def change(array):
    changed = array.copy()
    changed.flat[-2] += 1
    return changed


@pytest.mark.parametrize("what", ["ids", "types", "starts", "labels"])
def test_the_digest_covers_every_array(what):
    arrays = {"ids": np.arange(9), "types": np.zeros(9, np.uint8), "starts": np.array([0, 4, 9])}
    arrays["labels"] = np.array([[1, 2], [3, 4]])

    def digest(arrays):
        labels = arrays["labels"]
        return LabelledRows(Rows(arrays["ids"], arrays["types"], arrays["starts"]), labels).digest()

    assert digest(arrays) == digest(dict(arrays))
    assert digest(arrays) != digest({**arrays, what: change(arrays[what])})
    assert rows.content_digest(arrays["starts"], arrays["ids"]) in digest(arrays)
