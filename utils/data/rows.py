"""Tokenized rows of varying length, kept in flat arrays."""

import zlib
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer
from transformers import BertTokenizer

EVALUATION_TOKENS = 4096  # of an evaluation batch, padding included


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


def content_digest(*arrays: np.ndarray) -> str:
    """Return a short digest of the lengths and values of `arrays`."""
    parts = (f"{len(array)}:{zlib.crc32(np.ascontiguousarray(array).data)}" for array in arrays)
    return " ".join(parts)


def batches_by_length(rows: Rows) -> list[np.ndarray]:
    """Return row numbers in batches of similar length, longest first.

    A batch has at most EVALUATION_TOKENS tokens after padding, or a single row.
    """
    lengths = rows.lengths()
    order = np.argsort(-lengths, kind="stable")
    batches = []
    while len(order):
        size = max(1, EVALUATION_TOKENS // int(lengths[order[0]]))
        batches.append(order[:size])
        order = order[size:]
    return batches


def plain_tokenizer(tokenizer: BertTokenizer) -> Tokenizer:
    """Return a copy of the tokenizer's fast backend that neither truncates nor pads."""
    original = tokenizer.backend_tokenizer
    plain = Tokenizer.from_str(original.to_str())
    plain.encode_special_tokens = original.encode_special_tokens
    plain.no_truncation()
    plain.no_padding()
    return plain
