"""SQuAD questions cut into windows of WordPieces that a BERT can read."""

import json
import os
import re
import sys
import unicodedata
from bisect import bisect_right
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils import files
from utils.cache import cached_arrays, digest
from utils.errors import UserError
from utils.rows import Rows
from utils.squad_json import SquadExample, read_squad

WORD = re.compile("[^ \t\r\n\u202f]+")  # what the 2020 code takes for a word of a context
_CHUNK = 1000  # texts tokenized at a time: bounds the memory of the tokenizer's Python lists
CACHE_FORMAT = "squad windows 1"  # another text makes every older cache void


@dataclass
class SquadWindows:
    """W windows [CLS] question [SEP] piece of the context [SEP], windows of one question side by side.

    Per window: example: index of its question, int32 [W]; first: index in the window of its first context token,
    int32 [W]; base: index of that token in the arrays of context tokens, int64 [W]; start, end: first and last token
    of the answer as indices in the window, 0 ([CLS]) where it is not inside and in evaluation, int32 [W].
    Per token of `rows`: max_context: whether no other window shows this context token with more text around it, bool.
    Per token of the distinct contexts, one context after another: char_start, char_end: what it covers in its
    context, int32; inside_word: whether it goes on the word of the token before it ("##"), bool.
    skipped: indices of the questions that got no window because their answer's text disagrees with its place, int32.
    """

    rows: Rows
    example: np.ndarray
    first: np.ndarray
    base: np.ndarray
    start: np.ndarray
    end: np.ndarray
    max_context: np.ndarray
    char_start: np.ndarray
    char_end: np.ndarray
    inside_word: np.ndarray
    skipped: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of it as named arrays, for an .npz file."""
        arrays = dict(vars(self))
        rows = arrays.pop("rows")
        return arrays | {"ids": rows.ids, "types": rows.types, "starts": rows.starts}

    @classmethod
    def sound(cls, arrays: dict[str, np.ndarray]) -> bool:
        """Whether arrays from a file fit together as windows."""
        names = {field.name for field in fields(cls)} - {"rows"} | {"ids", "types", "starts"}
        if set(arrays) != names or any(
            np.ndim(a) != 1 or a.dtype.kind not in "iub" for a in arrays.values()
        ):
            return False
        size = {name: len(array) for name, array in arrays.items()}
        starts = arrays["starts"]
        return bool(
            len(starts)
            and starts[0] == 0
            and (np.diff(starts) > 0).all()
            and {size[name] for name in ("example", "first", "base", "start", "end")}
            == {len(starts) - 1}
            and {size[name] for name in ("ids", "types", "max_context")} == {int(starts[-1])}
            and size["char_start"] == size["char_end"] == size["inside_word"]
        )

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "SquadWindows":
        """The windows that `to_arrays` took apart."""
        arrays = dict(arrays)
        rows = Rows(*(arrays.pop(name) for name in ("ids", "types", "starts")))
        return cls(rows=rows, **arrays)


def load(
    path: str | os.PathLike,
    v2: bool,
    training: bool,
    tokenizer,
    max_seq_length: int,
    doc_stride: int,
    max_query_length: int,
    threads: int = 1,
    cache_dir: str | os.PathLike | None = None,
    overwrite_cache: bool = False,
    progress: bool = True,
) -> tuple[list[SquadExample], SquadWindows]:
    """The questions of a SQuAD file and their windows, the latter from a cache beside the file or in `cache_dir`.

    The other parameters and the errors are those of `read_squad` and `windows`. One line on stderr counts the
    training questions left out because their answer's text is not where the file says it is.
    """
    path = Path(path)
    examples = read_squad(path, v2)
    split = "train" if training else "dev"
    settings = f"{split} {max_seq_length} {doc_stride} {max_query_length}"
    key = digest(CACHE_FORMAT, path, _tokenizer_state(tokenizer), settings)
    cache = Path(cache_dir or path.parent) / files.SQUAD_CACHE.format(
        split=split, max_length=max_seq_length, digest=key
    )

    def build() -> dict[str, np.ndarray]:
        return windows(
            examples,
            tokenizer,
            max_seq_length,
            doc_stride,
            max_query_length,
            training,
            threads,
            progress,
        ).to_arrays()

    found = SquadWindows.from_arrays(
        cached_arrays(cache, build, SquadWindows.sound, overwrite_cache)
    )
    if len(found.skipped):
        print(
            f"warning: {path}: {len(found.skipped)} of {len(examples)} questions left out of training: the text of "
            f"their answer is not where its answer_start says (first: {examples[found.skipped[0]].id!r})",
            file=sys.stderr,
        )
    return examples, found


# ---- tokens


@dataclass
class _Tokens:
    """WordPieces of many texts, one text after another: text t has those from starts[t] to starts[t + 1]."""

    ids: np.ndarray
    starts: np.ndarray
    char_start: np.ndarray
    char_end: np.ndarray

    def of(self, text: int) -> np.ndarray:
        return self.ids[self.starts[text] : self.starts[text + 1]]


def _tokenize(texts: list[str], tokenizer, what: str, progress: bool) -> _Tokens:
    """All WordPieces of each text, without special tokens; a token covers the marks stripped off its last letter."""
    ids, spans, lengths = [], [], []
    with tqdm(
        total=len(texts), desc=f"tokenize {what}", leave=False, disable=None if progress else True
    ) as bar:
        for at in range(0, len(texts), _CHUNK):
            chunk = texts[at : at + _CHUNK]
            coded = tokenizer(
                chunk,
                add_special_tokens=False,
                padding=False,
                truncation=False,
                verbose=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                return_offsets_mapping=True,
            )
            for text, row, offsets in zip(
                chunk, coded["input_ids"], coded["offset_mapping"], strict=True
            ):
                lengths.append(len(row))
                ids.append(np.array(row, dtype=np.int32))
                spans.append(_with_marks(text, np.array(offsets, dtype=np.int32).reshape(-1, 2)))
            bar.update(len(chunk))
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    spans = np.concatenate([np.zeros((0, 2), np.int32), *spans])
    return _Tokens(
        np.concatenate([np.zeros(0, np.int32), *ids]),
        starts,
        spans[:, 0].copy(),
        spans[:, 1].copy(),
    )


def _with_marks(text: str, spans: np.ndarray) -> np.ndarray:
    """Spans that take in the combining marks after them, which lower-casing strips from decomposed letters."""
    if not text.isascii():
        for span in spans:
            while span[1] < len(text) and unicodedata.category(text[span[1]]) == "Mn":
                span[1] += 1
    return spans


def _tokenizer_state(tokenizer) -> str:
    """What decides the ids: all of the tokenizer but the truncation and padding that its last call left set."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = {key: state[key] for key in state.keys() - {"truncation", "padding"}}
    return json.dumps([kept, tokenizer.cls_token_id, tokenizer.sep_token_id], sort_keys=True)


# ---- windows


def windows(
    examples: list[SquadExample],
    tokenizer,
    max_seq_length: int,
    doc_stride: int,
    max_query_length: int,
    training: bool,
    threads: int = 1,
    progress: bool = False,
) -> SquadWindows:
    """Windows of at most `max_seq_length` tokens whose starts are `doc_stride` WordPieces apart.

    A question is cut to its first `max_query_length` tokens. A context without tokens gets no window, and in training
    neither does a question whose (first) answer's text disagrees with its place, as in the released code.
    `tokenizer` is a fast one. `threads`: those the tokenizers library may use; it heeds the first value a process gives
    it. The rest takes one. UserError: `doc_stride` below 1 or not smaller than the room beside the longest question.
    """
    os.environ["RAYON_NUM_THREADS"] = str(max(1, threads))
    _check_positive("--max_query_length", max_query_length)
    contexts = {
        context: index for index, context in enumerate(dict.fromkeys(e.context for e in examples))
    }
    context_of = np.array([contexts[e.context] for e in examples], dtype=np.int64)
    tokens = _tokenize(list(contexts), tokenizer, "contexts", progress)
    questions = _tokenize([e.question for e in examples], tokenizer, "questions", progress)
    question_sizes = np.minimum(np.diff(questions.starts), max_query_length)
    _check_stride(examples, question_sizes, max_seq_length, doc_stride)
    answer_first, answer_last, skipped = _answer_spans(
        examples, tokens, context_of, tokenizer, training, progress
    )

    sizes = np.where(skipped, 0, np.diff(tokens.starts)[context_of])
    example, offset, width = _layout(sizes, max_seq_length - 3 - question_sizes, doc_stride)
    first = question_sizes[example] + 2
    base = tokens.starts[context_of[example]] + offset
    inside = (answer_first[example] >= offset) & (answer_last[example] < offset + width)
    start = np.where(inside, answer_first[example] - offset + first, 0)
    end = np.where(inside, answer_last[example] - offset + first, 0)
    rows = _rows(questions, tokens, example, first, base, width, tokenizer)
    continues = np.array(
        [piece.startswith("##") for piece in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
    )
    small = dict(
        example=example, first=first, start=start, end=end, skipped=np.flatnonzero(skipped)
    )
    return SquadWindows(
        rows=rows,
        base=base,
        max_context=_max_context(rows, example, first, offset, width),
        char_start=tokens.char_start,
        char_end=tokens.char_end,
        inside_word=continues[tokens.ids],
        **{name: array.astype(np.int32) for name, array in small.items()},
    )


def _layout(
    sizes: np.ndarray, room: np.ndarray, stride: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Question, first context token and number of context tokens of every window, int64 [W].

    sizes, room: tokens of each question's context, and how many of them a window of it holds.
    """
    counts = np.where(sizes > 0, 1 + np.maximum(0, -((room - sizes) // stride)), 0)
    example = np.repeat(np.arange(len(sizes)), counts)
    offset = (np.arange(len(example)) - np.repeat(np.cumsum(counts) - counts, counts)) * stride
    return example, offset, np.minimum(sizes[example] - offset, room[example])


def _check_positive(flag: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{flag} {value}: must be at least 1")


def _check_stride(
    examples: list[SquadExample], question_sizes: np.ndarray, max_seq_length: int, stride: int
) -> None:
    _check_positive("--doc_stride", stride)
    longest = int(np.argmax(question_sizes))
    room = max_seq_length - 3 - int(question_sizes[longest])
    if stride >= room:
        raise UserError(
            f"--doc_stride {stride}: must be smaller than the {max(0, room)} context tokens that --max_seq_length "
            f"{max_seq_length} leaves beside question {examples[longest].id!r} of {question_sizes[longest]} tokens; "
            "lower it or --max_query_length, or raise --max_seq_length"
        )


def _rows(
    questions: _Tokens,
    tokens: _Tokens,
    example: np.ndarray,
    first: np.ndarray,
    base: np.ndarray,
    width: np.ndarray,
    tokenizer,
) -> Rows:
    """The ids and types of all windows: 0 up to the [SEP] after the question, 1 from there on."""
    starts = np.concatenate([[0], np.cumsum(first + width + 1)]).astype(np.int64)
    ids = np.full(starts[-1], tokenizer.sep_token_id, dtype=np.int32)
    types = np.ones(starts[-1], dtype=np.uint8)
    for window, at in enumerate(starts[:-1].tolist()):
        context_at = at + first[window]
        ids[at] = tokenizer.cls_token_id
        ids[at + 1 : context_at - 1] = questions.of(example[window])[: first[window] - 2]
        ids[context_at : context_at + width[window]] = tokens.ids[
            base[window] : base[window] + width[window]
        ]
        types[at:context_at] = 0
    return Rows(ids, types, starts)


def _max_context(
    rows: Rows, example: np.ndarray, first: np.ndarray, offset: np.ndarray, width: np.ndarray
) -> np.ndarray:
    """For each token of `rows`, whether its window is the best of the question's windows for that context token."""
    flags = np.zeros(len(rows.ids), dtype=bool)
    context_at = rows.starts[:-1] + first
    bounds = np.flatnonzero(np.diff(example, prepend=-1, append=-1))
    for begin, stop in zip(bounds[:-1], bounds[1:], strict=True):
        best = _best_window(offset[begin:stop], width[begin:stop])
        for window in range(begin, stop):
            seen = slice(offset[window], offset[window] + width[window])
            flags[context_at[window] : context_at[window] + width[window]] = (
                best[seen] == window - begin
            )
    return flags


def _best_window(offset: np.ndarray, width: np.ndarray) -> np.ndarray:
    """For each token of a context, the window with the most text on its poorer side plus 0.01 of the window's width."""
    if len(offset) == 1:
        return np.zeros(width[0], dtype=np.int64)
    left = np.arange(offset[-1] + width[-1]) - offset[:, None]
    right = width[:, None] - 1 - left
    poorer = np.minimum(left, right)
    return np.argmax(np.where(poorer >= 0, poorer + 0.01 * width[:, None], -1.0), axis=0)


# ---- where the answers are


def _answer_spans(
    examples: list[SquadExample],
    tokens: _Tokens,
    context_of: np.ndarray,
    tokenizer,
    training: bool,
    progress: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and last context token of each question's first answer, -1 where none is; which questions to leave out."""
    first, last = np.full((2, len(examples)), -1, dtype=np.int64)
    skipped = np.zeros(len(examples), dtype=bool)
    if not training:
        return first, last, skipped
    texts = [e.answers[0][0] if e.answers else "" for e in examples]
    answers = _tokenize(texts, tokenizer, "answers", progress)
    for index, example in enumerate(examples):
        if example.answers:
            text = slice(tokens.starts[context_of[index]], tokens.starts[context_of[index] + 1])
            span = _answer_span(
                example, tokens.ids[text], tokens.char_start[text], answers.of(index)
            )
            first[index], last[index] = span or (-1, -1)
            skipped[index] = span is None
    return first, last, skipped


def _answer_span(
    example: SquadExample, ids: np.ndarray, char_start: np.ndarray, answer_ids: np.ndarray
) -> tuple[int, int] | None:
    """The tokens of the words that the answer touches, or of the answer alone where the tokenization shows it.

    None where the answer's text is not in the words at its place, or nothing of it is left by the tokenizer.
    """
    text, at = example.answers[0]
    words = list(WORD.finditer(example.context))
    word_starts = [word.start() for word in words]
    stop = min(at + len(text), len(example.context))
    left, right = (
        bisect_right(word_starts, at) - 1,
        bisect_right(word_starts, stop - 1),
    )  # a space: the word before it
    answer = " ".join(text.split())
    if left < 0 or not answer or answer not in " ".join(word.group() for word in words[left:right]):
        return None
    first = int(np.searchsorted(char_start, words[left].start()))
    last = int(np.searchsorted(char_start, words[right - 1].end())) - 1
    for begin in range(first, last - len(answer_ids) + 2):
        if len(answer_ids) and np.array_equal(ids[begin : begin + len(answer_ids)], answer_ids):
            return begin, begin + len(answer_ids) - 1
    return (first, last) if first <= last else None
