"""SQuAD questions cut into windows of WordPieces that fit a BERT."""

import hashlib
import json
import os
import re
import unicodedata
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm
from transformers import BertTokenizer

from utils import files
from utils.config import SquadConfig
from utils.data.cache import Arrays, cached_arrays
from utils.data.rows import Rows
from utils.data.squad import Questions, SquadExample
from utils.errors import UserError

WORD = re.compile("[^ \t\r\n\u202f]+")  # a word of a context in the released code
CACHE_FORMAT = "squad windows 3"  # change it to invalidate every older cache
_PER_WINDOW = ("example", "first", "base", "start", "end")  # one number each
_CHUNK = 1000  # texts tokenized at a time: bounds the memory of the tokenizer's Python lists


@dataclass
class SquadWindows:
    """W windows [CLS] question [SEP] piece of the context [SEP], those of one question adjacent."""

    # per token; window w has the tokens starts[w] to starts[w + 1]
    ids: np.ndarray  # int32
    types: np.ndarray  # uint8: 0 up to the first [SEP], then 1
    max_context: np.ndarray  # bool: no other window has more text around this context token
    starts: np.ndarray  # int64 [W + 1]
    # per window
    example: np.ndarray  # int32: index of its question
    first: np.ndarray  # int32: index in the window of its first context token
    base: np.ndarray  # int32: index of that token among the tokens of all contexts
    start: np.ndarray  # int32: index in the window of the answer's first token
    end: np.ndarray  # int32: and of its last; 0 ([CLS]) without a whole answer and in evaluation
    # per token of the distinct contexts, concatenated
    char_start: np.ndarray  # int32: the characters of its context that it covers
    char_end: np.ndarray  # int32
    inside_word: np.ndarray  # bool: it continues the word of the token before it ("##")
    # questions left out of training because their answer's text is not at its answer_start
    skipped: np.ndarray  # int32

    def __len__(self) -> int:
        return len(self.example)

    @property
    def rows(self) -> Rows:
        """The windows as token rows."""
        return Rows(self.ids, self.types, self.starts)

    @property
    def labels(self) -> np.ndarray:
        """First and last token of the answers, int32 [2, W]."""
        return np.stack([self.start, self.end])


def load(
    questions: Questions,
    tokenizer: BertTokenizer,
    config: SquadConfig,
    training: bool,
    cache_dir: str | None = None,
    overwrite_cache: bool = False,
) -> SquadWindows:
    """Return the windows of questions, from a cache in `cache_dir` or beside the data.

    Raises UserError as `make_windows` does, and if there is no window. A warning counts the
    training questions left out because their answer's text is not at its answer_start.
    """
    examples = questions.examples
    name = _cache_name(questions.digest, tokenizer, config, training)
    cache = Path(cache_dir or questions.folder) / name

    def build() -> Arrays:
        return vars(make_windows(examples, tokenizer, config, training))

    windows = SquadWindows(**cached_arrays(cache, build, overwrite_cache))
    if not len(windows):
        what = "no question has an answer to train on" if training else "every context is empty"
        raise UserError(f"{questions.name}: {what}; give another file")
    if len(windows.skipped):
        count = f"{len(windows.skipped)} of {len(examples)} questions left out of training"
        first = examples[windows.skipped[0]].id
        spaces = " or has spaces that 2020's code did not split" * config.only_word_spaces
        why = f"their answer's text is not at its answer_start{spaces} (first: {first!r})"
        files.warn(f"{questions.name}: {count}: {why}")
    return windows


def _cache_name(content: str, tokenizer: BertTokenizer, config: SquadConfig, training: bool) -> str:
    split, length = "train" if training else "dev", config.max_seq_length
    settings = [split, length, config.doc_stride, config.max_query_length, config.only_word_spaces]
    vocabulary = tokenizer.backend_tokenizer.to_str()
    special = (tokenizer.cls_token_id, tokenizer.sep_token_id)
    key = json.dumps([CACHE_FORMAT, content, vocabulary, *special, settings])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return files.SQUAD_CACHE.format(split=split, max_length=length, digest=digest)


class _Tokens(NamedTuple):
    """The n WordPieces of a text: ids int32 [n]; start and end of their characters int32 [n, 2]."""

    ids: np.ndarray
    spans: np.ndarray


def _tokenize(texts: list[str], tokenizer: BertTokenizer, what: str) -> list[_Tokens]:
    """WordPieces of each text, without special tokens."""
    found = []
    chunks = range(0, len(texts), _CHUNK)
    for begin in tqdm(chunks, desc=f"tokenize {what}", leave=False, disable=None):
        chunk = texts[begin : begin + _CHUNK]
        encodings = tokenizer(chunk, add_special_tokens=False, verbose=False).encodings or []
        for text, encoding in zip(chunk, encodings, strict=True):
            spans = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
            if not text.isascii():
                for span in spans:  # lower-casing strips the combining marks behind a letter
                    while span[1] < len(text) and unicodedata.category(text[span[1]]) == "Mn":
                        span[1] += 1
            found.append(_Tokens(np.array(encoding.ids, dtype=np.int32), spans))
    return found


def make_windows(
    examples: list[SquadExample], tokenizer: BertTokenizer, config: SquadConfig, training: bool
) -> SquadWindows:
    """Cut every question into windows of max_seq_length tokens or fewer, doc_stride tokens apart.

    A question is truncated to its first max_query_length tokens. As in the released code, a context
    without tokens gets no window, and in training neither does a question if its first answer's
    text is not at its start. `tokenizer` must be a fast one. Raises UserError if doc_stride is
    below 1 or not smaller than the space beside the longest question.
    """
    os.environ["RAYON_NUM_THREADS"] = str(config.threads)  # tokenizers reads it once per process
    numbers = {text: n for n, text in enumerate(dict.fromkeys(e.context for e in examples))}
    contexts = _tokenize(list(numbers), tokenizer, "contexts")
    bases = np.cumsum([0, *(len(context.ids) for context in contexts)]).tolist()
    heads = _heads(examples, tokenizer, config)
    gold = [e.answers[0][0] if training and e.answers else "" for e in examples]
    answers = _tokenize(gold, tokenizer, "answers")

    ids, max_context = [np.zeros(0, np.int32)], [np.zeros(0, np.bool_)]
    sizes: list[int] = []  # tokens of each window's two segments
    table: list[tuple[int, ...]] = []  # _PER_WINDOW of each window
    skipped: list[int] = []
    for index, (example, head) in enumerate(zip(examples, heads, strict=True)):
        number, answer = numbers[example.context], None
        if training and example.answers:
            answer = _answer_span(example, contexts[number], answers[index].ids, config)
            if answer is None:
                skipped.append(index)
                continue
        room = config.max_seq_length - len(head) - 1
        for offset, best in _layout(len(contexts[number].ids), room, config.doc_stride):
            stop, start, end = offset + len(best), 0, 0
            if answer and offset <= answer[0] and answer[1] < stop:
                start, end = (len(head) + token - offset for token in answer)
            ids += [head, contexts[number].ids[offset:stop], head[-1:]]
            max_context += [np.zeros(len(head), np.bool_), best, np.zeros(1, np.bool_)]
            sizes += [len(head), len(best) + 1]
            table.append((index, len(head), bases[number] + offset, start, end))
    columns = np.array(table, dtype=np.int32).reshape(-1, len(_PER_WINDOW)).T.copy()
    spans = np.concatenate([context.spans for context in contexts])
    vocabulary = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    continues = np.array([piece.startswith("##") for piece in vocabulary])
    return SquadWindows(
        ids=np.concatenate(ids),
        types=np.repeat(np.tile(np.array([0, 1], np.uint8), len(table)), np.array(sizes, np.int64)),
        max_context=np.concatenate(max_context),
        starts=np.cumsum([0, *sizes], dtype=np.int64)[::2].copy(),
        **dict(zip(_PER_WINDOW, columns, strict=True)),
        char_start=spans[:, 0].copy(),
        char_end=spans[:, 1].copy(),
        inside_word=continues[np.concatenate([context.ids for context in contexts])],
        skipped=np.array(skipped, dtype=np.int32),
    )


def _heads(
    examples: list[SquadExample], tokenizer: BertTokenizer, config: SquadConfig
) -> list[np.ndarray]:
    """[CLS] question [SEP] of each example. Raises UserError if the sizes leave no room beside."""
    cls, sep, most = tokenizer.cls_token_id, tokenizer.sep_token_id, config.max_query_length
    questions = _tokenize([e.question for e in examples], tokenizer, "questions")
    heads = [np.array([cls, *question.ids[:most], sep], dtype=np.int32) for question in questions]
    longest = max(range(len(heads)), key=lambda index: len(heads[index]))
    room = config.max_seq_length - len(heads[longest]) - 1
    if config.doc_stride >= room:
        raise UserError(
            f"--doc_stride {config.doc_stride}: must be smaller than the {max(0, room)} context "
            f"tokens that --max_seq_length {config.max_seq_length} leaves beside question "
            f"{examples[longest].id!r} of {len(heads[longest]) - 2} tokens; lower it or "
            "--max_query_length, or raise --max_seq_length"
        )
    return heads


def _layout(size: int, room: int, stride: int) -> list[tuple[int, np.ndarray]]:
    """Offset of each window in a context of `size` tokens, and which of its tokens it shows best.

    A window shows a token best if it has the most text on the token's poorer side, plus 0.01 of the
    window's width.
    """
    if size == 0:
        return []
    spans = [
        slice(at, min(at + room, size)) for at in range(0, max(size - room, 0) + stride, stride)
    ]
    most, best = np.full(size, -1.0), np.zeros(size, dtype=np.int32)
    for window, span in enumerate(spans):
        left = np.arange(span.stop - span.start)
        text = np.minimum(left, left[::-1]) + 0.01 * len(left)
        better = text > most[span]
        most[span][better], best[span][better] = text[better], window
    return [(span.start, best[span] == window) for window, span in enumerate(spans)]


def _answer_span(
    example: SquadExample, context: _Tokens, answer: np.ndarray, config: SquadConfig
) -> tuple[int, int] | None:
    """First and last token of the answer, or of all words it touches if its WordPieces differ.

    None if the answer's text is not in these words or the tokenizer drops it all.
    """
    text, at = example.answers[0]
    words = list(WORD.finditer(example.context))
    word_starts = [word.start() for word in words]
    stop = min(at + len(text), len(example.context))
    left = bisect_right(word_starts, at) - 1  # before a space: the word in front of it
    right = bisect_right(word_starts, stop - 1)
    answer_text = " ".join(text.split())
    touched = " ".join(word.group() for word in words[max(left, 0) : right])
    if not config.only_word_spaces:
        touched = " ".join(touched.split())
    if left < 0 or not answer_text or answer_text not in touched:
        return None
    char_start = context.spans[:, 0]
    first = int(np.searchsorted(char_start, words[left].start()))
    last = int(np.searchsorted(char_start, words[right - 1].end())) - 1
    for begin in range(first, last - len(answer) + 2):
        if len(answer) and np.array_equal(context.ids[begin : begin + len(answer)], answer):
            return begin, begin + len(answer) - 1
    return (first, last) if first <= last else None
