"""SQuAD files: read, or refused with a message that names the file and the entry."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.squad import SquadExample, read_squad
from utils.errors import UserError


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


def test_golden_examples(golden):
    ours = read_squad(golden / "assets" / "squad" / "dev-v1.1.json", v2=False)
    for example, reference in zip(
        ours, json.loads((golden / "squad" / "examples_dev.json").read_text()), strict=True
    ):
        assert (example.id, example.question, example.context, not example.answers) == (
            reference["qas_id"],
            reference["question_text"],
            reference["context_text"],
            reference["is_impossible"],
        )
        assert list(example.answers) == [
            (a["text"], a["answer_start"]) for a in reference["answers"]
        ]


def test_reads_a_v2_file(tmp_path):
    qas = [
        question(),
        question("q2", answers=(), is_impossible=True),
        question("q3", is_impossible=True),
    ]
    examples = read_squad(written(tmp_path, document(qas=qas, version="v2.0")), v2=True)
    assert [e.answers for e in examples] == [(("two", 4),), (), ()]


def test_reads_a_byte_order_mark_and_a_v1_file_with_the_v2_flag(tmp_path):
    path = written(tmp_path, b"\xef\xbb\xbf" + json.dumps(document()).encode())
    assert (
        read_squad(path, v2=False)
        == read_squad(path, v2=True)
        == [SquadExample("q1", "Which?", "One two, three.", (("two", 4),))]
    )


BAD = {
    "empty file": (b"", "not JSON"),
    "not JSON": (b'{"data": [\n]', "line 2"),
    "not UTF-8": (b'{"data": "\xff"}', "not JSON in UTF-8"),
    "huge number": (b"1" * 5000, "not JSON"),
    "deep nesting": (b"[" * 100_000, "not JSON"),
    "a list": ([], "'data'"),
    "no data": ({"version": "1.1"}, "'data'"),
    "data of another kind": ({"data": {}}, "'data' is dict"),
    "no questions": ({"data": []}, "no questions"),
    "no paragraphs": ({"data": [{}]}, "article 1: has no 'paragraphs'"),
    "no context": ({"data": [{"paragraphs": [{"qas": []}]}]}, "paragraph 1: has no 'context'"),
    "no qas": ({"data": [{"paragraphs": [{"context": ""}]}]}, "paragraph 1: has no 'qas'"),
    "question of another kind": (document(qas=["q"]), "question 1: has no 'id'"),
    "no id": (
        document(qas=[question(), {"question": "?", "answers": []}]),
        "question 2: has no 'id'",
    ),
    "id of another kind": (document(qas=[question(7)]), "'id' is int"),
    "no question text": (document(qas=[{"id": "q", "answers": []}]), "'q'.*no 'question'"),
    "no answers": (document(qas=[{"id": "q", "question": "?"}]), "'q'.*no 'answers'"),
    "empty answers": (document(qas=[question(answers=())]), "'q1'.*'answers' is empty"),
    "answer without start": (
        document(qas=[{"id": "q", "question": "?", "answers": [{"text": "a"}]}]),
        "answer_start",
    ),
    "start is a truth value": (
        document(qas=[question(answers=[("One", False)])]),
        "'answer_start' is bool",
    ),
    "start behind the context": (
        document(qas=[question(answers=[("x", 15)])]),
        "'q1'.*answer_start 15.*15 char",
    ),
    "negative start": (document(qas=[question(answers=[("x", -1)])]), "answer_start -1"),
    "answer in no context": (document(context=""), "outside its context of 0"),
    "one id twice": (document(qas=[question(), question("q2"), question()]), "two questions.*'q1'"),
    "v2 by version": (document(version="v2.0"), "--version_2_with_negative"),
    "v2 by question": (
        document(qas=[question("q9", is_impossible=True)]),
        "'q9'.*--version_2_with_negative",
    ),
    "impossible in words": (document(qas=[question(is_impossible="no")]), "'is_impossible' is str"),
    "half a character": (document(context="One two \ud800"), "surrogate"),
}


@pytest.mark.parametrize("content, message", BAD.values(), ids=BAD.keys())
def test_bad_files_are_refused_by_name(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(UserError, match=message) as caught:
        read_squad(path, v2=False)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_missing_file_and_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match=r"not JSON in UTF-8 .*(No such file|Is a directory)"):
            read_squad(path, v2=False)


_KEYS = st.sampled_from(
    [
        "data",
        "paragraphs",
        "context",
        "qas",
        "id",
        "question",
        "answers",
        "text",
        "answer_start",
        "is_impossible",
        "version",
    ]
)
_LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-2, 9), st.floats(), st.text(max_size=8))
_JSON = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4)
)


@st.composite
def _almost_squad(draw):
    """A SQuAD document in which one value was exchanged."""
    value = document(qas=[question(), question("q2", is_impossible=False)])
    at = value
    while isinstance(at, (dict, list)) and at:
        key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[key], (dict, list)) or draw(st.booleans()):
            at[key] = draw(_JSON)
            break
        at = at[key]
    return value


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=60), _JSON, _almost_squad()), st.booleans())
def test_any_content_is_read_or_refused(tmp_path_factory, content, v2):
    path = written(tmp_path_factory.getbasetemp(), content)
    try:
        examples = read_squad(path, v2)
    except UserError as error:
        assert str(error).startswith(str(path))
    else:
        assert examples and all(isinstance(e.context, str) for e in examples)
