"""Tokenized rows of varying length, kept in flat arrays."""

import zlib
from dataclasses import dataclass

import numpy as np
from transformers import BertTokenizer

from utils import files

EVALUATION_TOKENS = 4096  # of an evaluation batch, padding included
UNKNOWN_SHARE = 0.05  # of the tokens of a data set; more is worth a warning


@dataclass
class Rows:
    """`n` tokenized rows, special tokens included, in three flat arrays.

    ids: WordPiece ids of all rows, [tokens]; types: token types (segments), uint8 [tokens];
    starts: int64 [n + 1], row r is ids[starts[r]:starts[r + 1]].
    """

    ids: np.ndarray
    types: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        span = slice(self.starts[row], self.starts[row + 1])
        return self.ids[span], self.types[span]

    def lengths(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Return the number of tokens of each row, or of the rows numbered `rows`, int64 [n]."""
        if rows is None:
            return np.diff(self.starts)
        return self.starts[rows + 1] - self.starts[rows]


@dataclass
class LabelledRows:
    """n tokenized rows and their labels: [n], or [k, n] for k labels per row."""

    rows: Rows
    labels: np.ndarray

    def digest(self) -> str:
        """Return a digest of all rows and labels."""
        labels = np.atleast_2d(self.labels)
        return content_digest(self.rows.starts, self.rows.ids, *labels, self.rows.types)


def content_digest(*arrays: np.ndarray) -> str:
    """Return a short digest of the lengths and values of `arrays`."""
    parts = (f"{len(array)}:{zlib.crc32(np.ascontiguousarray(array).data)}" for array in arrays)
    return " ".join(parts)


def batches_by_length(rows: Rows, width: int | None = None) -> list[np.ndarray]:
    """Return row numbers in batches of similar length, longest first.

    A batch has at most EVALUATION_TOKENS tokens after padding (to `width` if given), or one row.
    """
    lengths = rows.lengths()
    order = np.argsort(-lengths, kind="stable")
    batches = []
    while len(order):
        size = max(1, EVALUATION_TOKENS // (width or int(lengths[order[0]])))
        batches.append(order[:size])
        order = order[size:]
    return batches


def warn_of_unknown(name: str, tokenizer: BertTokenizer, ids: np.ndarray) -> None:
    """Warn if more than UNKNOWN_SHARE of the tokens `ids`, [tokens], of `name` are [UNK]."""
    parts = np.array_split(ids, len(ids) // (1 << 24) + 1)  # bounds the memory
    counted = (tokenizer.unk_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
    unknown, *special = (sum(np.count_nonzero(part == id_) for part in parts) for id_ in counted)
    tokens = len(ids) - sum(special)
    if unknown > UNKNOWN_SHARE * tokens:
        case = "lower-cased" if tokenizer.do_lower_case else "not lower-cased"
        remedy = "check --do_lower_case (MLM: do_lower_case in tokenizer_config.json) and vocab.txt"
        share = f"{unknown / tokens:.1%} of the tokens are unknown ([UNK])"
        files.warn(f"{name}: {share}; the text is {case}: {remedy}")
