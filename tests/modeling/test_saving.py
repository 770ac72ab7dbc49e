"""Vocabularies: what is read is what is written, and a folder without one is refused."""

import json
import re

import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer

from utils.errors import UserError
from utils.modeling.bert import (
    SequenceClassifier,
    check_vocabulary,
    load_config,
    load_model,
    load_tokenizer,
)
from utils.modeling.saving import save_pretrained

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    source = str(tiny.bert(tmp_path_factory.mktemp("saving") / "bert"))
    return load_model(SequenceClassifier, source, load_config(source), 1)


def write_vocabulary(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_bytes(text.encode())
    return str(folder)


def assert_saved_as_read(model, source, out):
    tokenizer = load_tokenizer(source, True)
    save_pretrained(model, tokenizer, out)
    ids = tokenizer.get_vocab()
    lines = (out / "vocab.txt").read_bytes().decode().split("\n")
    assert all(lines[number] == token for token, number in ids.items() if "\n" not in token)
    assert load_tokenizer(str(out), True).get_vocab() == ids
    (out / "tokenizer.json").unlink()
    return ids, load_tokenizer(str(out), True).get_vocab()


@pytest.mark.parametrize(
    "words",
    [
        ["a", "b", "a", "c"],
        ["a", "a", "a", "b", "b"],
        ["\u00a0", "a", "", "b", "a\u00a0b"],
        ["a ", "b", "", "", "c"],
        [" a", "a\u2028b", "a\x85b"],
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_vocabulary_written_is_the_one_read(model, tmp_path, words, end):
    text = "".join(word + end for word in [*SPECIAL, *words])
    source = write_vocabulary(tmp_path / "source", text)
    ids, reread = assert_saved_as_read(model, source, tmp_path / "saved")
    assert reread == ids and len(set(ids.values())) == len(ids)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.text(st.sampled_from("ab \t\u00a0\r\n"), max_size=3), min_size=1, max_size=8))
def test_any_tokens_of_tokenizer_json_keep_their_ids(model, tmp_path_factory, words):
    folder = tmp_path_factory.mktemp("any")
    words = [*SPECIAL, *dict.fromkeys(["word", *words])]
    own = BertWordPieceTokenizer({word: k for k, word in enumerate(words)})
    own.save(str(folder / "tokenizer.json"))
    ids = load_tokenizer(str(folder), True).get_vocab()
    save_pretrained(model, load_tokenizer(str(folder), True), folder / "saved")
    assert load_tokenizer(str(folder / "saved"), True).get_vocab() == ids
    lines = (folder / "saved" / "vocab.txt").read_bytes().decode().split("\n")
    for token, number in ids.items():
        if not set(token) & set("\r\n"):
            assert lines[number] == token


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", r"no \[PAD\]"),
        ("\n".join(SPECIAL), "no WordPieces"),
        *(("\n".join([*SPECIAL, "a"]).replace(t, "x"), re.escape(f"no {t}")) for t in SPECIAL),
        ("\ufeff" + "\n".join([*SPECIAL, "a"]), r"no \[PAD\]"),
        (None, "no vocab.txt"),
    ],
)
def test_a_folder_without_a_vocabulary_is_refused(tmp_path, text, problem):
    if text is None:
        (tmp_path / "vocab.txt").mkdir()
    else:
        write_vocabulary(tmp_path, text)
    for lower in (True, None):
        with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))}: .*{problem}"):
            load_tokenizer(str(tmp_path), lower)


def test_ids_beyond_the_embeddings_are_refused_though_the_words_are_few(model, tmp_path):
    words = [*SPECIAL, *["same"] * (model.config.vocab_size - len(SPECIAL)), "last"]
    tokenizer = load_tokenizer(write_vocabulary(tmp_path, "\n".join(words)), True)
    assert len(tokenizer) == 7
    with pytest.raises(UserError, match=f"vocabulary has {len(words)} WordPieces"):
        check_vocabulary(model.config, tokenizer)


# ---- case


OTHERS = {"none": None, "sequence": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}}


@pytest.mark.parametrize("normalizer", ["lower", "cased", *OTHERS])
def test_the_case_of_tokenizer_json_is_followed_unless_a_flag_or_setting_decides(
    tmp_path, normalizer
):
    words = [*SPECIAL, "The", "the"]
    vocabulary = {word: k for k, word in enumerate(words)}
    own = BertWordPieceTokenizer(vocabulary, lowercase=normalizer == "lower")
    path = tmp_path / "tokenizer.json"
    own.save(str(path))
    write_vocabulary(tmp_path, "\n".join(words))
    if normalizer in OTHERS:
        content = json.loads(path.read_text()) | {"normalizer": OTHERS[normalizer]}
        path.write_text(json.dumps(content))
    found = load_tokenizer(str(tmp_path), None).tokenize("The")
    assert found == ["the" if normalizer in ("lower", "sequence") else "The"]
    assert load_tokenizer(str(tmp_path), True).tokenize("The") == ["the"]
    assert load_tokenizer(str(tmp_path), False).tokenize("The") == ["The"]
    for stated in (True, False):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": stated}))
        found = load_tokenizer(str(tmp_path), None).tokenize("The")
        assert found == ["the" if stated else "The"]
