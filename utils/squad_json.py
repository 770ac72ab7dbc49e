"""SQuAD questions from their JSON, checked entry by entry."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError

_VERSION_2 = re.compile(r"v?2(\.|$)")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class SquadExample:
    """One question; `answers` are (text, index of its first character in `context`), none if `is_impossible`."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    is_impossible: bool


def read_squad(path: str | os.PathLike, v2: bool) -> list[SquadExample]:
    """Every question of a SQuAD v1.1 file, or with `v2` of a v2.0 (or v1.1) file, in the file's order.

    UserError: no such file, not UTF-8, not JSON, not of SQuAD's form, no questions, a v2.0 file without `v2`,
    a question without id or with the id of another, an answerable one without answers, an answer that starts outside
    its context. Whether an answer's text is found at its start is for `windows` to see.
    """
    document = _read_json(Path(path))
    if not v2 and _VERSION_2.match(str(document.get("version"))):
        raise UserError(
            f"{path}: this is a SQuAD 2.0 file; add --version_2_with_negative or give a v1.1 file"
        )
    examples = [
        _example(place, context, qa, v2) for place, context, qa in _questions(path, document)
    ]
    if not examples:
        raise UserError(f"{path}: holds no questions")
    seen = set()
    for example in examples:
        if example.id in seen:
            raise UserError(
                f"{path}: two questions have the id {example.id!r}; each needs an id of its own"
            )
        seen.add(example.id)
    return examples


def _read_json(path: Path) -> dict:
    try:
        document = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: not JSON (line {error.lineno}: {error.msg}); give a SQuAD .json file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON that can be read; give a SQuAD .json file") from error
    if not isinstance(document, dict) or "data" not in document:
        raise UserError(f"{path}: no key 'data' at the top; give a SQuAD .json file")
    return document


def _questions(path: str | os.PathLike, document: dict) -> Iterator[tuple[str, str, dict]]:
    """(where in the file, context, entry) of each question; articles and paragraphs are counted from 1."""
    for a, article in enumerate(_get(document, "data", list, f"{path}"), 1):
        place = f"{path}: article {a}"
        for p, paragraph in enumerate(_get(article, "paragraphs", list, place), 1):
            place = f"{path}: article {a}, paragraph {p}"
            context = _get(paragraph, "context", str, place)
            for q, qa in enumerate(_get(paragraph, "qas", list, place), 1):
                yield f"{place}, question {q}", context, qa


def _example(place: str, context: str, qa: dict, v2: bool) -> SquadExample:
    name = _get(qa, "id", str, place)
    place = f"{place} (id {name!r})"
    question = _get(qa, "question", str, place)
    impossible = _get(qa, "is_impossible", bool, place) if "is_impossible" in qa else False
    if impossible and not v2:
        raise UserError(
            f"{place}: has no answer (SQuAD 2.0); add --version_2_with_negative or give a v1.1 file"
        )
    answers = (
        ()
        if impossible
        else tuple(_answer(entry, context, place) for entry in _get(qa, "answers", list, place))
    )
    if not impossible and not answers:
        raise UserError(
            f"{place}: 'answers' is empty; give an answer, or is_impossible and --version_2_with_negative"
        )
    return SquadExample(name, question, context, answers, impossible)


def _answer(entry: dict, context: str, place: str) -> tuple[str, int]:
    text, start = _get(entry, "text", str, place), _get(entry, "answer_start", int, place)
    if not 0 <= start < len(context):
        raise UserError(
            f"{place}: answer_start {start} is outside its context of {len(context)} characters"
        )
    return text, start


def _get(entry: dict, key: str, kind: type, place: str):
    """`entry[key]` if it is there and exactly of that kind (so that true is no int)."""
    if not isinstance(entry, dict) or key not in entry:
        raise UserError(f"{place}: has no {key!r}")
    value = entry[key]
    if type(value) is not kind:
        raise UserError(f"{place}: {key!r} is {type(value).__name__}, not {kind.__name__}")
    if kind is str and _LONE_SURROGATE.search(value):
        raise UserError(f"{place}: {key!r} holds half of a surrogate pair, which is no character")
    return value
