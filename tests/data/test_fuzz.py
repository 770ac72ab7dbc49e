"""Corrupt copies of every kind of input file are read, or refused with a one-line UserError.

Each test reads a hundred copies. FUZZ_SECONDS=600 in the environment spends that time on each kind
of file and prints the number of copies (with -s).
"""

import contextlib
import io
import json
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from results_tree import mask_info, row, small_mask, write_rows

from experiments import results
from utils.config import SquadConfig
from utils.data import glue, squad_windows, text
from utils.data.squad import read_questions
from utils.errors import UserError
from utils.modeling.bert import load_tokenizer
from utils.pruning import mask_files, masks
from utils.runs.records import append_record, read_records

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
EXAMPLES = 100
CONTROLS = [
    b"\0",
    b"\xff",
    b"\n",
    b"\r",
    b"\t",
    b"\xed\xa0\x80",
    "\ufeff".encode(),
    "\u2028".encode(),
]
JSON_PARTS = [b'"', b"\\", b"{", b"[" * 50, b"]", b"}", b",", b"null", b"true", b"NaN"]
NUMBERS = [b"-1", b"1e999", b"9" * 30]
SCRAPS = [*CONTROLS, *JSON_PARTS, *NUMBERS, b"PK\3\4", b"c__builtin__\neval\n"]
TASKS = ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI"]


@st.composite
def edits(draw):
    """Draw a few changes to a file: kind, position in thousandths of the file, length, bytes."""
    kinds = st.sampled_from(["flip", "cut", "insert", "delete", "repeat", "swap"])
    scrap = st.sampled_from(SCRAPS) | st.binary(min_size=1, max_size=8)
    edit = st.tuples(kinds, st.integers(0, 1000), st.integers(1, 64), scrap)
    return draw(st.lists(edit, min_size=1, max_size=5))


def corrupted(content: bytes, changes) -> bytes:
    for kind, position, length, scrap in changes:
        at = position * len(content) // 1000
        before, piece, after = content[:at], content[at : at + length], content[at + length :]
        content = {
            "flip": before
            + bytes(byte ^ (1 << length % 8) for byte in piece[:1])
            + piece[1:]
            + after,
            "cut": before,
            "insert": before + scrap + piece + after,
            "delete": before + after,
            "repeat": before + piece * 3 + after,
            "swap": before + scrap + after,
        }[kind]
    return content


def fuzz(read, good: list[bytes], path: Path, cache: Path | None = None) -> None:
    """Read corrupt copies of the good files at `path`; every error but UserError fails the test."""
    count = refused = 0

    def check(content, changes):
        nonlocal count, refused
        path.write_bytes(corrupted(content, changes))
        for old in cache.iterdir() if cache else ():
            old.unlink()
        count += 1
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # warnings
                read(path)
        except UserError as error:
            refused += 1
            assert str(path.name) in str(error) and "\n" not in str(error), str(error)

    options = settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    end, number = time.monotonic() + SECONDS, 0
    while number == 0 or time.monotonic() < end:
        seed(number)(options(given(st.sampled_from(good), edits())(check)))()
        number += 1
    reader = os.environ["PYTEST_CURRENT_TEST"].partition("::test_")[2].split()[0]
    print(f"\n{reader}: {count} corrupt copies read, {refused} of them refused")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tiny.bert(tmp_path_factory.mktemp("fuzz") / "bert", width=16)
    return load_tokenizer(str(folder), True)


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.mark.parametrize("task", TASKS)
def test_tsv(tmp_path, tokenizer, task, monkeypatch):
    monkeypatch.setattr(f"{__name__}.SECONDS", SECONDS / len(TASKS))
    spec, folder = glue.find_spec(task), tiny.glue(tmp_path / "data", task, train=4, dev=4)
    path = folder / "train.tsv"

    def read(_):
        found = glue.load(spec, folder, "train", tokenizer, 16)
        assert len(found.rows) == len(found.labels) > 0 and found.rows.lengths().max() <= 16

    fuzz(read, [path.read_bytes()], path)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("v2", [True, False])
def test_squad(tmp_path, tokenizer, cache, training, v2, monkeypatch):
    monkeypatch.setattr(f"{__name__}.SECONDS", SECONDS / 4)
    path = tiny.squad(tmp_path / "data", train=2, dev=2, impossible=v2) / "train-v1.1.json"
    content = json.loads(path.read_text())
    good = [path.read_bytes(), json.dumps({**content, "data": content["data"][:1]}).encode()]
    config = SquadConfig(
        max_seq_length=32, doc_stride=8, max_query_length=8, version_2_with_negative=v2, threads=1
    )

    def read(file):
        squad_windows.load(read_questions(file, v2), tokenizer, config, training, str(cache))

    fuzz(read, good, path, cache)


@pytest.mark.parametrize("by_lines", [True, False])
def test_text(tmp_path, tokenizer, cache, by_lines, monkeypatch):
    monkeypatch.setattr(f"{__name__}.SECONDS", SECONDS / 2)
    path = tiny.text(tmp_path / "data", train=8, valid=1) / "en.train"

    def read(file):
        blocks = text.load_blocks(text.Text(file, tokenizer, by_lines, threads=1), 16, cache)
        blocks.gather(np.arange(len(blocks)))

    fuzz(read, [path.read_bytes()], path, cache)


MASK = small_mask(0.5, 1, layers=1, side=8)
SHAPES = {name.removesuffix(masks.SUFFIX): value.shape for name, value in MASK.items()}


def test_mask(tmp_path):
    path, good = tmp_path / "mask.pt", []
    for kind in (torch.bool, torch.float32, torch.int64):
        torch.save({name: value.to(kind) for name, value in MASK.items()}, path)
        good.append(path.read_bytes())
    torch.save(MASK, path, _use_new_zipfile_serialization=False)
    good.append(path.read_bytes())

    def read(file):
        for name, value in mask_files.load(file, SHAPES).items():
            assert value.dtype == torch.bool and value.shape == MASK[name].shape
            if zipfile.is_zipfile(file):
                assert torch.equal(value, MASK[name]), "the file's CRCs reveal the damage"

    fuzz(read, good, path)


def test_exported_mask(tmp_path):
    path = tmp_path / "mask.safetensors"
    mask_files.pack_mask(MASK, path)
    fuzz(mask_files.unpack_mask, [path.read_bytes()], path)


def test_results(tmp_path):
    """Read by the run that appends to them, and by the tables."""
    found = mask_info("mrpc", 0.5, 1)
    rows = [row("mrpc", 80.0, number, mask) for number in (1, 2) for mask in (None, found)]
    path = write_rows(tmp_path / "run", rows)
    (_, record), *_ = read_records(path)[0]

    def read(file):
        before, problems = read_records(file)
        assert all(str(file) in problem and "\n" not in problem for problem in problems)
        read_back = results.read(file.parent)
        for task in set(read_back.rows["task"]):
            read_back.full(task)
            read_back.cell(task, "IMP", 50.0)
            set(read_back.select(task, "IMP")["percent"])
        append_record(file, record)
        after = [each for _, each in read_records(file)[0]]
        assert after == [*(each for _, each in before), record]

    fuzz(read, [path.read_bytes()], path)
