"""JSON files: what a dataclass describes is read, and everything else is refused in one line."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import schema
from utils.errors import UserError
from utils.pruning.origin import Origin, read_origin
from utils.runs.records import EvaluationRecord, Owner
from utils.runs.tickets import Index, Ticket


@dataclass
class Inner:
    flag: bool
    words: list[str] = field(default_factory=list)


@dataclass
class Outer:
    count: int
    rate: float | None
    name: str = "none"
    inner: Inner | None = None
    table: dict[str, list[int]] = field(default_factory=dict)
    anything: Any = None


GOOD = {"count": 3, "rate": 0.5, "inner": {"flag": True, "words": ["a"]}, "table": {"x": [1, 2]}}


def test_values_are_read_as_the_dataclass_declares_them():
    read = schema.from_json(Outer, GOOD | {"later": 1, "anything": [None]})
    assert read == Outer(3, 0.5, inner=Inner(True, ["a"]), table={"x": [1, 2]}, anything=[None])
    assert schema.from_json(Outer, {"count": 1, "rate": None, "name": None}) == Outer(1, None)
    assert schema.from_json(dict[str, list[int]], {"a": [1]}) == {"a": [1]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": [1]}, "'count' is [1], not an integer"),
        ({"count": True}, "'count' is True, not an integer"),
        ({"count": 1.0}, "'count' is 1.0, not an integer"),
        ({"count": None}, "'count' is None, not an integer"),
        ({"rate": float("inf")}, "'rate' is inf, not a number or null"),
        ({"rate": False}, "'rate' is False, not a number or null"),
        ({"name": 3}, "'name' is 3, not a string"),
        ({"inner": []}, "'inner' is [], not an object or null"),
        ({"inner": {}}, "no 'inner.flag'"),
        ({"inner": {"flag": 1}}, "'inner.flag' is 1, not true or false"),
        ({"inner": {"flag": True, "words": ["a", 2]}}, "'inner.words[1]' is 2, not a string"),
        ({"table": {"x": {}}}, "'table.x' is {}, not a list"),
    ],
)
def test_a_value_of_another_type_is_named(changes, message):
    with pytest.raises(ValueError) as error:
        schema.from_json(Outer, GOOD | changes)
    assert str(error.value) == message


@pytest.mark.parametrize("value", [[], "a", 3, None])
def test_what_is_no_object_is_refused(value):
    with pytest.raises(ValueError, match="not an object"):
        schema.from_json(Outer, value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe{\x00}\x00",
        '{"count": 3}'.encode("utf-16"),
        b'{"count": 3, "rate": 1, "name": "\\ud800"}',
        b'{"count": 3, "rate": 1e999}',
        b'{"count": ' + b"9" * 30 + b', "rate": 1}',
        b'{"count": ' + b"9" * 10_000 + b', "rate": 1}',
        b'{"count": 3, "rate": 1, "anything": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"count": 3, "rate": 1} {}',
    ],
    ids=range(9),
)
def test_a_file_of_anything_else_is_refused_in_one_line(tmp_path, data):
    path = tmp_path / "file.json"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        schema.read(path, Outer)
    message = str(error.value)
    assert message.startswith(f"{path}: corrupt or unreadable (")
    assert message.isprintable() and len(message) < 300


def test_a_byte_order_mark_is_no_error_and_a_missing_file_is_none(tmp_path):
    path = tmp_path / "file.json"
    assert schema.read(path, Outer) is None and schema.read(path / "x", Outer) is None
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert schema.read(path, Outer) == schema.from_json(Outer, GOOD)


KINDS = [Origin, EvaluationRecord, Owner, Index, Ticket]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=4), inside),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_value_of_a_key_gives_another_error_than_one_line(data):
    kind = data.draw(st.sampled_from(KINDS))
    keys = st.sampled_from(list(kind.__dataclass_fields__))
    content = data.draw(st.dictionaries(keys, JSON) | JSON)
    try:
        read = schema.from_json(kind, content)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert schema.from_json(kind, asdict(read)) == read


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_give_another_error_than_one_line(data):
    try:
        schema.parse(data)
    except ValueError as error:
        assert "\n" not in str(error)


def test_a_corrupt_origin_is_reported_and_unknown(tmp_path, capsys):
    path = tmp_path / "mask.pt.json"
    path.write_text('{"method": "imp", "seed": [1]}')
    assert read_origin(tmp_path / "mask.pt") is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {path}: ") and "'seed' is [1], not an integer or null" in line
    path.write_text('{"method": "imp", "mask_sha256": "00"}')
    assert read_origin(tmp_path / "mask.pt", "00").method == "imp"
    assert capsys.readouterr().err == "" and read_origin(tmp_path / "mask.pt", "11") is None
    assert "describes another mask" in capsys.readouterr().err
