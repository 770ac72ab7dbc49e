"""SQuAD windows: tokens, positions and offsets as in the released code, and their cache."""

import gzip
import json
import re
import tracemalloc
import unicodedata
from bisect import bisect_right
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from utils.config import SquadConfig
from utils.data import squad_windows
from utils.data.squad import SquadExample, read_questions, read_squad
from utils.data.squad_windows import WORD, load, make_windows
from utils.errors import UserError
from utils.released import squad_config

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
VOCAB = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *LETTERS,
    *("##" + c for c in LETTERS),
    *".,-()?",
    "one",
    "two",
]


@pytest.fixture(scope="module")
def tokenizer():
    """Lower-casing WordPieces: letters, digits, their continuations, punctuation, two words."""
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(VOCAB)})


def document(context="One two, three.", qas=None, version="1.1"):
    qas = [question()] if qas is None else qas
    return {
        "version": version,
        "data": [{"title": "t", "paragraphs": [{"context": context, "qas": qas}]}],
    }


def question(name="q1", text="Which?", answers=(("two", 4),), **more):
    return {
        "id": name,
        "question": text,
        **more,
        "answers": [{"text": answer, "answer_start": start} for answer, start in answers],
    }


def written(folder, content):
    path = folder / "squad.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def example(context, *answers, name="q1", text="Which?"):
    return SquadExample(name, text, context, answers)


def sizes(length, stride, query):
    return SquadConfig(max_seq_length=length, doc_stride=stride, max_query_length=query)


def cut(examples, tokenizer, training=True, length=64, stride=16, query=16):
    return make_windows(examples, tokenizer, sizes(length, stride, query), training)


def pieces(tokenizer, found, window):
    return tokenizer.convert_ids_to_tokens(found.rows[window][0])


def answer_pieces(tokenizer, found, window=0):
    return pieces(tokenizer, found, window)[found.start[window] : found.end[window] + 1]


def covered(found, context):
    """The text that each context token covers."""
    return [context[a:b] for a, b in zip(found.char_start, found.char_end, strict=True)]


# ---- parity with the released code


@pytest.fixture(scope="module", params=["dev", "train"])
def both(request, golden):
    """(examples, our windows, the released code's features) of a golden file."""
    reference = json.loads(
        (golden / "squad" / f"features_{request.param}_64_24_16.json").read_text()
    )
    tokenizer = BertTokenizer.from_pretrained(golden / "assets" / "model")
    examples = read_squad(golden / "assets" / "squad" / f"{request.param}-v1.1.json", v2=False)
    ours = make_windows(examples, tokenizer, sizes(64, 24, 16), training=request.param == "train")
    assert (len(examples), len(ours)) == (reference["n_examples"], reference["n_features"])
    return examples, ours, reference["features"]


def test_golden_tokens(both):
    _, ours, features = both
    for window, feature in enumerate(features):
        ids, types = ours.rows[window]
        assert ids.tolist() == feature["input_ids"][: sum(feature["attention_mask"])]
        assert types.tolist() == feature["token_type_ids"][: len(ids)]


def test_golden_questions_and_positions(both):
    _, ours, features = both
    assert ours.example.tolist() == [feature["example_index"] for feature in features]
    assert ours.start.tolist() == [feature["start_position"] for feature in features]
    assert ours.end.tolist() == [feature["end_position"] for feature in features]


def test_golden_maximum_context(both):
    _, ours, features = both
    for window, feature in enumerate(features):
        flags = ours.max_context[ours.rows.starts[window] : ours.rows.starts[window + 1]]
        expected = feature["token_is_max_context"]
        assert flags.tolist() == [expected.get(str(token), False) for token in range(len(flags))]


def test_golden_words_of_the_tokens(both):
    examples, ours, features = both
    for window, feature in enumerate(features):
        words = [word.start() for word in WORD.finditer(examples[ours.example[window]].context)]
        first, stop = int(ours.first[window]), int(ours.rows.lengths()[window]) - 1
        chars = ours.char_start[ours.base[window] : ours.base[window] + stop - first]
        ours_map = {str(first + i): bisect_right(words, char) - 1 for i, char in enumerate(chars)}
        assert ours_map == feature["token_to_orig_map"]


# ---- real text


@pytest.fixture(scope="module")
def real(real_data, tmp_path_factory):
    """The first 600 questions of the real dev file, as training data, and what tokenized them."""
    path = tmp_path_factory.mktemp("squad") / "dev.json"
    path.write_bytes(gzip.decompress((real_data / "SQuAD" / "dev-v1.1.json.gz").read_bytes()))
    everything = read_squad(path, v2=False)
    assert len(everything) == 10570
    tokenizer = BertTokenizer(vocab=str(real_data / "bert-uncased-vocab" / "vocab.txt"))
    examples = everything[:600]
    return examples, make_windows(examples, tokenizer, sizes(160, 48, 32), training=True), tokenizer


def test_real_contexts_tokenize_as_their_words_alone(real):
    examples, found, tokenizer = real
    words = [
        [word.group() for word in WORD.finditer(context)]
        for context in {e.context: 0 for e in examples}
    ]
    alone = tokenizer([word for context in words for word in context], add_special_tokens=False)[
        "input_ids"
    ]
    whole = {int(base): i for i, base in enumerate(found.base)}
    ids = np.zeros(len(found.char_start), dtype=int)
    for base, window in whole.items():
        piece = found.rows[window][0][found.first[window] : -1]
        ids[base : base + len(piece)] = piece
    assert ids.tolist() == [number for word in alone for number in word]


def test_real_offsets_show_the_tokens(real):
    examples, found, tokenizer = real
    for window in range(0, len(found), 7):
        context = examples[found.example[window]].context
        for token, piece in enumerate(pieces(tokenizer, found, window)[found.first[window] : -1]):
            at = found.base[window] + token
            text = unicodedata.normalize(
                "NFD", context[found.char_start[at] : found.char_end[at]].lower()
            )
            bare = "".join(c for c in text if unicodedata.category(c) != "Mn")
            assert piece == "[UNK]" or piece.removeprefix("##") == bare
            assert found.inside_word[at] == piece.startswith("##")


def test_real_answers_are_where_the_positions_say(real):
    examples, found, _ = real
    assert len(found.skipped) == 0 and len(set(found.example.tolist())) == 600
    for window in np.flatnonzero(found.start):
        text, at = examples[found.example[window]].answers[0]
        context = examples[found.example[window]].context
        shift = found.base[window] - found.first[window]
        left = found.char_start[shift + found.start[window]]
        right = found.char_end[shift + found.end[window]]
        assert text in context[left:right]
        piece = slice(found.base[window], shift + found.rows.lengths()[window] - 1)
        if at in found.char_start[piece] and at + len(text) in found.char_end[piece]:
            whole = not found.inside_word[piece][np.flatnonzero(found.char_start[piece] == at)[0]]
            assert (left, right) == (at, at + len(text)) or not whole


# ---- windows


def test_windows_step_by_doc_stride_and_cover_every_token_once_best(tokenizer):
    context = " ".join(LETTERS[i % 26] for i in range(100))
    found = cut([example(context, ("a", 0), text="one two")], tokenizer, length=30, stride=7)
    room = 30 - 3 - 2
    assert found.base.tolist() == list(range(0, 100 - room + 7, 7))
    assert found.rows.lengths().tolist() == [30] * (len(found) - 1) + [
        5 + 100 - int(found.base[-1])
    ]
    best = np.zeros(100, dtype=int)
    for window in range(len(found)):
        flags = found.max_context[found.rows.starts[window] : found.rows.starts[window + 1]]
        assert not flags[: found.first[window]].any() and not flags[-1]
        best[found.base[window] : found.base[window] + flags[4:-1].size] += flags[4:-1]
    assert best.tolist() == [1] * 100


def test_wider_windows_win_a_little_of_the_overlap(tokenizer):
    found = cut([example(" ".join("a" * 212), text="")], tokenizer, length=204, stride=151)
    assert found.rows.lengths().tolist() == [204, 64]
    # token p: 200 - p + 2.01 in the first window, p - 151 + 0.61 in the second: equal near 176.7
    assert found.max_context[:204].sum() == 177
    assert found.max_context[204:].sum() == 212 - 177


@pytest.mark.parametrize("tokens, expected", [(25, 1), (26, 2), (32, 2), (33, 3)])
def test_a_window_more_only_where_text_is_left(tokenizer, tokens, expected):
    found = cut(
        [example(" ".join("a" * tokens), ("a", 0), text="one two")], tokenizer, length=30, stride=7
    )
    assert len(found) == expected


def test_answer_only_in_the_windows_that_hold_all_of_it(tokenizer):
    context = " ".join(["a"] * 20 + ["one", "two"] + ["a"] * 20)
    found = cut([example(context, ("one two", 40), text="")], tokenizer, length=24, stride=5)
    holds = [base <= 20 and base + 21 > 21 for base in found.base.tolist()]
    assert [bool(start) for start in found.start] == holds and 0 < sum(holds) < len(found)
    for window in np.flatnonzero(found.start):
        assert answer_pieces(tokenizer, found, window) == ["one", "two"]
    assert not found.end[found.start == 0].any()


def test_evaluation_has_no_positions(tokenizer):
    found = cut([example("one two", ("two", 4))], tokenizer, training=False)
    assert (found.start.tolist(), found.end.tolist()) == ([0], [0])


def test_long_question_is_cut(tokenizer):
    found = cut([example("one", ("one", 0), text="a b c d e f")], tokenizer, query=4)
    assert pieces(tokenizer, found, 0) == ["[CLS]", "a", "b", "c", "d", "[SEP]", "one", "[SEP]"]
    assert found.rows[0][1].tolist() == [0] * 6 + [1] * 2
    assert found.first.tolist() == [6]


def test_unicode_spaces_and_control_characters(tokenizer):
    context = "one\u202ftwo\u00a0a\u2003b\tc\r\nd\x00e\u200b\ufffdf\u2028g"
    found = cut([example(context, ("e", context.index("e\u200b")))], tokenizer)
    assert pieces(tokenizer, found, 0)[found.first[0] : -1] == [
        "one",
        "two",
        "a",
        "b",
        "c",
        "d",
        "##e",
        "##f",
        "g",
    ]
    assert covered(found, context) == ["one", "two", "a", "b", "c", "d", "e", "f", "g"]
    assert answer_pieces(tokenizer, found) == ["d", "##e", "##f", "g"]  # one word for the 2020 code


def test_accents_composed_and_decomposed_belong_to_their_letter(tokenizer):
    context = "é e\u0301 xe\u0301."
    found = cut([example(context, ("xe\u0301", 5))], tokenizer)
    assert covered(found, context) == ["é", "e\u0301", "x", "e\u0301", "."]
    assert answer_pieces(tokenizer, found) == ["x", "##e"]


@pytest.mark.parametrize(
    "context, answer, at, expected",
    [
        ("in (1895-1943).", "1895", 4, "1 ##8 ##9 ##5"),  # punctuation around it falls away
        ("the 1990s boom", "1990", 4, "1 ##9 ##9 ##0"),  # a beginning of a word
        ("the 1990s boom", "990", 5, "1 ##9 ##9 ##0 ##s"),  # no beginning: all of the word
        ("the 1990s boom", "990s ", 5, "1 ##9 ##9 ##0 ##s"),  # and none of the next one
        ("one\u202f1990s", "990s", 5, "1 ##9 ##9 ##0 ##s"),
        ("one-two one", "two", 4, "two"),
        ("one two one two", "one two", 8, "one two"),  # answer_start decides
        ("one  two", "one two", 0, "one two"),  # spaces are not compared
        (" one", " one", 0, None),  # it starts before the first word
        ("one two", "one three", 0, None),
        ("one two", "two", 0, None),
        ("one two", "", 0, None),
        ("one\u00a0two", "one\u00a0two", 0, "one two"),
        ("a 10\u3000000 b", "10\u3000000", 2, "1 ##0 0 ##0 ##0"),
        ("a one\u2009two", "one\u2009two", 2, "one two"),
        ("one \x07 two", "\x07", 4, None),  # the tokenizer drops it all
    ],
)
def test_answer_positions(tokenizer, context, answer, at, expected):
    found = cut([example(context, (answer, at))], tokenizer)
    if expected is None:
        assert (len(found), found.skipped.tolist()) == (0, [0])
    else:
        assert answer_pieces(tokenizer, found) == expected.split()
        assert found.skipped.size == 0


def cut_as_released(examples, tokenizer, **sizes):
    config = squad_config(SquadConfig(max_seq_length=64, doc_stride=16, max_query_length=16))
    return make_windows(examples, tokenizer, config, training=True)


@pytest.mark.parametrize("space", "\u00a0\u3000\u2009\x85\u2028")
def test_the_released_rule_leaves_out_answers_with_other_spaces(tokenizer, space):
    context = f"one{space}two one"
    examples = [example(context, (f"one{space}two", 0)), example(context, ("one", 8))]
    assert cut(examples, tokenizer).skipped.tolist() == []
    assert cut_as_released(examples, tokenizer).skipped.tolist() == [0]


@settings(max_examples=200)
@given(st.text("one two.\t\n\u202f", min_size=1, max_size=30), st.data())
def test_without_other_spaces_both_rules_find_the_same(tokenizer, context, data):
    at = data.draw(st.integers(0, len(context) - 1))
    part = data.draw(st.sampled_from([context[at:], context[at : at + 4], "two", " one"]))
    examples = [example(context, (part, at))]
    ours, theirs = cut(examples, tokenizer), cut_as_released(examples, tokenizer)
    assert ours.skipped.tolist() == theirs.skipped.tolist()
    assert (ours.start.tolist(), ours.end.tolist()) == (theirs.start.tolist(), theirs.end.tolist())


@settings(max_examples=100)
@given(st.text(" one\u00a0\u3000\u2009.", min_size=1, max_size=30), st.data())
def test_an_answer_at_its_start_is_found_whatever_its_spaces(tokenizer, context, data):
    words = [word.span() for word in re.finditer(r"\S+", context)]
    assume(words)
    (start, _), (_, stop) = sorted(data.draw(st.tuples(*2 * [st.sampled_from(words)])))
    found = cut([example(context, (context[start:stop], start))], tokenizer)
    assert found.skipped.size == 0 and len(found)


def test_only_the_first_answer_trains(tokenizer):
    found = cut([example("one two", ("two", 4), ("one", 0))], tokenizer)
    assert answer_pieces(tokenizer, found) == ["two"]


def test_impossible_questions_train_towards_cls(tokenizer):
    found = cut([example("one two"), example("one two", ("two", 4), name="q2")], tokenizer)
    assert (found.start > 0).tolist() == [False, True]
    assert found.skipped.size == 0


def test_contexts_without_tokens_have_no_windows(tokenizer):
    empty = [example(""), example("one", name="q2"), example(" \t\x00", name="q3")]
    found = cut(empty, tokenizer, training=False)
    assert found.example.tolist() == [1]
    assert len(cut(empty[:1], tokenizer, training=False)) == 0


def test_special_tokens_in_the_text_stay_whole(tokenizer):
    found = cut([example("one [SEP] two[MASK]")], tokenizer)
    assert pieces(tokenizer, found, 0)[found.first[0] : -1] == ["one", "[SEP]", "two", "[MASK]"]
    assert found.first[0] == 2 + len(tokenizer.tokenize("Which?"))


def test_a_shared_context_is_kept_once(tokenizer):
    found = cut(
        [example("one two", ("two", 4)), example("one two", ("one", 0), name="q2")], tokenizer
    )
    assert len(found.char_start) == 2
    assert found.base.tolist() == [0, 0]


@pytest.mark.parametrize(
    "length, stride, query, flag",
    [
        (20, 15, 16, "--doc_stride 15: must be smaller than the 15"),
        (20, 400, 16, "--doc_stride 400"),
        (4, 1, 16, "smaller than the 0"),
    ],
)
def test_settings_that_leave_no_room(tokenizer, length, stride, query, flag):
    with pytest.raises(UserError, match=flag):
        cut(
            [example("one", name="short", text=""), example("one", text="one two")],
            tokenizer,
            length=length,
            stride=stride,
            query=query,
        )


def test_the_largest_stride_that_fits(tokenizer):
    found = cut([example(" ".join("a" * 30), text="one two")], tokenizer, length=20, stride=14)
    assert found.base.tolist() == [0, 14, 28]


@settings(max_examples=60)
@given(st.integers(1, 90), st.integers(8, 40), st.data())
def test_a_token_is_shown_best_by_the_first_window_with_most_text(tokenizer, size, length, data):
    room = length - 4
    stride = data.draw(st.integers(1, room - 1))
    found = cut([example(" ".join("a" * size), text="b")], tokenizer, False, length, stride)
    scores = np.full((len(found), size), -1.0)
    for window, base in enumerate(found.base):
        width = int(found.rows.lengths()[window]) - 4
        for at in range(width):
            scores[window, base + at] = min(at, width - 1 - at) + 0.01 * width
    for window, base in enumerate(found.base):
        flags = found.max_context[found.starts[window] + 3 : found.starts[window + 1] - 1]
        best = scores.argmax(0)[base : base + len(flags)] == window
        assert flags.tolist() == best.tolist()


def test_the_memory_of_a_long_context_grows_with_its_tokens_only(tokenizer):
    size = 40_000  # a table of all windows and tokens has 800 MB
    tracemalloc.start()
    try:
        found = cut([example(" ".join("a" * size))], tokenizer, False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) > 2000 and peak < 1000 * size


# ---- caches


def loaded(path, tokenizer, training=True, cache_dir=None, overwrite_cache=False, **changes):
    config = replace(sizes(32, 8, 8), **changes)
    questions = read_questions(path, config.version_2_with_negative)
    windows = load(questions, tokenizer, config, training, cache_dir, overwrite_cache)
    return questions.examples, windows


@pytest.fixture
def counted(monkeypatch):
    """How often windows were made."""
    calls = SimpleNamespace(count=0)
    make = squad_windows.make_windows

    def counting(*args, **kwargs):
        calls.count += 1
        return make(*args, **kwargs)

    monkeypatch.setattr(squad_windows, "make_windows", counting)
    return calls


def test_cache_gives_the_same_windows(tmp_path, tokenizer, counted):
    path = written(tmp_path, document())
    first, second = loaded(path, tokenizer), loaded(path, tokenizer)
    assert counted.count == 1
    assert first[0] == second[0]
    for name, array in vars(first[1]).items():
        again = vars(second[1])[name]
        assert again.dtype == array.dtype and np.array_equal(again, array)


def test_cache_knows_what_it_was_made_from(tmp_path, tokenizer, counted):
    path = written(tmp_path, document())
    loaded(path, tokenizer)
    changes = [
        dict(training=False),
        dict(max_seq_length=33),
        dict(doc_stride=9),
        dict(max_query_length=7),
    ]
    for number, change in enumerate(changes, 2):
        loaded(path, tokenizer, **change)
        assert counted.count == number
    loaded(
        path, BertTokenizer(vocab={piece: number for number, piece in enumerate(reversed(VOCAB))})
    )
    written(tmp_path, document("One two, four."))
    assert "u" in pieces(tokenizer, loaded(path, tokenizer)[1], 0)[-4]
    assert counted.count == 7


def test_cache_can_lie_elsewhere(tmp_path, tokenizer):
    path = written(tmp_path, document())
    loaded(path, tokenizer, cache_dir=tmp_path / "caches")
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["squad.json"]
    assert [file.suffix for file in (tmp_path / "caches").iterdir()] == [".npz"]


def test_questions_left_out_are_counted_from_the_cache_too(tmp_path, tokenizer, capsys):
    qas = [
        question(),
        question("odd", answers=[("two", 0)]),
        question("odd2", answers=[("four", 4)]),
    ]
    path = written(tmp_path, document(qas=qas))
    for _ in range(2):
        examples, found = loaded(path, tokenizer)
        assert (
            len(examples) == 3
            and found.example.tolist() == [0]
            and found.skipped.tolist() == [1, 2]
        )
        message = capsys.readouterr().err
        assert (
            message.count("\n") == 1
            and "2 of 3 questions" in message
            and "'odd'" in message
            and str(path) in message
        )
    loaded(path, tokenizer, training=False)
    assert capsys.readouterr().err == ""
