"""Spoilt copies of every kind of file that is read: each is read, or refused with the project's own one-line error.

A hundred copies a reader; FUZZ_SECONDS=600 in the environment spoils copies of each for so long, and prints how many (-s).
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
from utils import glue_data, masks, models, run, squad_data, text, ticket_format
from utils.errors import UserError

SECONDS = float(os.environ.get("FUZZ_SECONDS", 0))
EXAMPLES = 100
SCRAPS = [
    b"\0",
    b"\xff",
    b"\n",
    b"\r",
    b"\t",
    b'"',
    b"\\",
    b"{",
    b"[" * 50,
    b"]",
    b"}",
    b",",
    b"null",
    b"NaN",
    b"-1",
    b"1e999",
    b"9" * 30,
    b"\xed\xa0\x80",
    "\ufeff".encode(),
    "\u2028".encode(),
    b"PK\3\4",
    b"c__builtin__\neval\n",
    b"true",
]


@st.composite
def edits(draw):
    """A few changes to a file: each a kind, a place in thousandths of it, a length, and bytes."""
    kinds = st.sampled_from(["flip", "cut", "insert", "delete", "repeat", "swap"])
    scrap = st.sampled_from(SCRAPS) | st.binary(min_size=1, max_size=8)
    return draw(
        st.lists(
            st.tuples(kinds, st.integers(0, 1000), st.integers(1, 64), scrap),
            min_size=1,
            max_size=5,
        )
    )


def spoilt(content: bytes, changes) -> bytes:
    for kind, place, length, scrap in changes:
        at = place * len(content) // 1000
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
    """Write spoilt copies of the good files to `path` and read them; what comes out but UserError comes out of here."""
    count = refused = 0

    def check(content, changes):
        nonlocal count, refused
        path.write_bytes(spoilt(content, changes))
        for old in cache.iterdir() if cache else ():
            old.unlink()
        count += 1
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # warnings
                read(path)
        except UserError as error:
            refused += 1
            assert str(path.name) in str(error) and "\n" not in str(error), str(error)

    end, number = time.monotonic() + SECONDS, 0
    while number == 0 or time.monotonic() < end:
        again = settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        seed(number)(again(given(st.sampled_from(good), edits())(check)))()
        number += 1
    reader = os.environ["PYTEST_CURRENT_TEST"].partition("::test_")[2].split()[0]
    print(f"\n{reader}: {count} spoilt copies read, {refused} of them refused")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny.bert(tmp_path_factory.mktemp("fuzz") / "bert", width=16)


@pytest.fixture(scope="module")
def tokenizer(bert):
    return models.load_tokenizer(str(bert), True)


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.mark.parametrize(
    "task", ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI"]
)
def test_tsv(tmp_path, tokenizer, cache, task, monkeypatch):
    monkeypatch.setattr(f"{__name__}.SECONDS", SECONDS / 9)
    spec, folder = glue_data.find_spec(task), tiny.glue(tmp_path / "data", task, train=4, dev=4)
    path = folder / "train.tsv"
    fuzz(
        lambda _: glue_data.load(spec, folder, "train", tokenizer, 16, cache),
        [path.read_bytes()],
        path,
        cache,
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("v2", [True, False])
def test_squad(tmp_path, tokenizer, cache, training, v2, monkeypatch):
    monkeypatch.setattr(f"{__name__}.SECONDS", SECONDS / 4)
    path = tiny.squad(tmp_path / "data", train=2, dev=2, impossible=v2) / "train-v1.1.json"
    content = json.loads(path.read_text())
    good = [path.read_bytes(), json.dumps({**content, "data": content["data"][:1]}).encode()]
    fuzz(
        lambda file: squad_data.load(
            file, v2, training, tokenizer, 32, 8, 8, 1, cache, progress=False
        ),
        good,
        path,
        cache,
    )


@pytest.mark.parametrize("by_lines", [True, False])
def test_text(tmp_path, tokenizer, cache, by_lines, monkeypatch):
    monkeypatch.setattr(f"{__name__}.SECONDS", SECONDS / 2)
    path = tiny.text(tmp_path / "data", train=8, valid=1) / "en.train"

    def read(file):
        blocks = text.load_blocks(file, tokenizer, 16, by_lines, cache, False, 1)
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
        for name, value in masks.load(file, SHAPES).items():
            assert value.dtype == torch.bool and value.shape == MASK[name].shape
            if zipfile.is_zipfile(file):
                assert torch.equal(value, MASK[name]), "damage that the file's checksums tell"

    fuzz(read, good, path)


def test_exported_mask(tmp_path):
    path = tmp_path / "mask.safetensors"
    ticket_format.pack_mask(MASK, path)
    fuzz(ticket_format.unpack_mask, [path.read_bytes()], path)


def test_results(tmp_path):
    """By the run that appends to them, and by the tables."""
    found = mask_info("mrpc", 0.5, 1)
    rows = [row("mrpc", 80.0, number, mask) for number in (1, 2) for mask in (None, found)]
    path = write_rows(tmp_path / "run", rows)
    path = path / "results.jsonl" if path.is_dir() else path

    def read(file):
        before = run.read_rows(file)
        assert all(isinstance(each, dict) for each in before)
        read_back = results.read(file.parent)
        for task in {each.task for each in read_back.rows}:
            (
                read_back.full(task),
                read_back.ticket(task, 50.0),
                read_back.percents(task, source="imp"),
            )
        run.append_row(file, {"one": "more"})
        assert run.read_rows(file) == [*before, {"one": "more"}]

    fuzz(read, [path.read_bytes()], path)
