"""SQuAD questions from their JSON file, each entry checked."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import files
from utils.errors import UserError

_VERSION_2 = re.compile(r"v?2(\.|$)")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_REMEDY = "add --version_2_with_negative or give a v1.1 file"


@dataclass(frozen=True)
class SquadExample:
    """One question and its answers: (text, index of its first character in `context`) of each.

    A question without answers is impossible (SQuAD 2.0).
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Questions:
    """The questions of a file or a dataset.

    name: as messages name it; folder: where its window caches go without --cache_dir; digest: of
    its content.
    """

    name: str
    folder: Path
    digest: str
    examples: list[SquadExample]

    def first(self, count: int | None) -> "Questions":
        """Return the first `count` questions, None for all."""
        if count is None or count >= len(self.examples):
            return self
        digest = f"{self.digest} {count}"
        return Questions(self.name, self.folder, digest, self.examples[:count])


def read_squad(path: Path, v2: bool) -> list[SquadExample]:
    """Read every question of a SQuAD v1.1 file, or with `v2` of a v2.0 (or v1.1) file, in order.

    Raises UserError if the file is unreadable or not of SQuAD's form, if it has no questions or two
    with the same id, if it needs `v2`, and if an answer starts outside its context. `squad_windows`
    checks the answers' texts.
    """
    document = _read_json(path)
    if not v2 and _VERSION_2.match(str(document.get("version"))):
        raise UserError(f"{path}: this is a SQuAD 2.0 file; {_REMEDY}")
    return check_questions(str(path), _questions(path, document), v2)


def read_questions(path: Path, v2: bool) -> Questions:
    """Read a SQuAD file as `read_squad` does."""
    examples = read_squad(path, v2)
    return Questions(str(path), path.parent, files.file_digest(path), examples)


def check_questions(
    source: str, questions: Iterable[tuple[str, str, Any]], v2: bool
) -> list[SquadExample]:
    """Return the questions (position, context, entry) of a source, each checked.

    Raises UserError as `read_squad` does.
    """
    examples: dict[str, SquadExample] = {}
    for where, context, entry in questions:
        example = _example(where, context, entry, v2)
        if example.id in examples:
            raise UserError(f"{source}: two questions have the id {example.id!r}; make ids unique")
        examples[example.id] = example
    if not examples:
        raise UserError(f"{source}: has no questions; give another file")
    return list(examples.values())


def _read_json(path: Path) -> Any:
    try:
        document = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON in UTF-8 ({error}); give a SQuAD .json file") from error
    if not isinstance(document, dict) or "data" not in document:
        raise UserError(f"{path}: no key 'data' at the top level; give a SQuAD .json file")
    return document


def _questions(path: Path, document: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield (position in the file, context, entry) of each question; positions count from 1."""
    for a, article in enumerate(_get(document, "data", list, f"{path}"), 1):
        for p, paragraph in enumerate(_get(article, "paragraphs", list, f"{path}: article {a}"), 1):
            where = f"{path}: article {a}, paragraph {p}"
            context = _get(paragraph, "context", str, where)
            for q, entry in enumerate(_get(paragraph, "qas", list, where), 1):
                yield f"{where}, question {q}", context, entry


def _example(where: str, context: str, entry: Any, v2: bool) -> SquadExample:
    name = _get(entry, "id", str, where)
    where = f"{where} (id {name!r})"
    question = _get(entry, "question", str, where)
    if "is_impossible" in entry and _get(entry, "is_impossible", bool, where):
        if not v2:
            raise UserError(f"{where}: has no answer (SQuAD 2.0); {_REMEDY}")
        return SquadExample(name, question, context, ())
    answers = []
    for answer in _get(entry, "answers", list, where):
        text, start = _get(answer, "text", str, where), _get(answer, "answer_start", int, where)
        if not 0 <= start < len(context):
            outside = f"outside its context of {len(context)} characters"
            raise UserError(f"{where}: answer_start {start} is {outside}")
        answers.append((text, start))
    if not answers:
        remedy = "give an answer, or is_impossible and --version_2_with_negative"
        raise UserError(f"{where}: 'answers' is empty; {remedy}")
    return SquadExample(name, question, context, tuple(answers))


def _get(entry: Any, key: str, kind: type, where: str) -> Any:
    """Return `entry[key]`, which must be exactly of type `kind` (True is no int)."""
    if not isinstance(entry, dict) or key not in entry:
        raise UserError(f"{where}: has no {key!r}")
    value = entry[key]
    if type(value) is not kind:
        raise UserError(f"{where}: {key!r} is {type(value).__name__}, not {kind.__name__}")
    if isinstance(value, str) and _LONE_SURROGATE.search(value):
        raise UserError(f"{where}: {key!r} has a lone surrogate, which is not a character")
    return value
