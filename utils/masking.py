"""BERT's masking for masked language modelling (Devlin et al. 2019, section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from utils.rows import send


@dataclass
class Masked:
    """Tokens with K of them masked.

    inputs: int64 [T], what the model sees; places: int64 [K], ascending, the indices in T of the tokens to predict;
    targets: int64 [K], what stood there; rows: int64 [K] on the CPU, the row that each of them is in.
    """

    inputs: torch.Tensor
    places: torch.Tensor
    targets: torch.Tensor
    rows: np.ndarray


def special_mask(ids: torch.Tensor, special_ids: Sequence[int]) -> torch.Tensor:
    """True where `ids` (any shape) is one of `special_ids`; bool, same shape and device."""
    return torch.isin(ids, torch.tensor(special_ids, dtype=ids.dtype, device=ids.device))


def mask_tokens(
    ids: torch.Tensor,
    maskable: torch.Tensor,
    row_of: np.ndarray,
    mask_id: int,
    vocab_size: int,
    seed: int,
    device: torch.device,
    probability: float = 0.15,
) -> Masked:
    """Each maskable token is chosen with `probability`; of the chosen, 80 % become `mask_id`, 10 % a WordPiece drawn from
    all `vocab_size`, 10 % stay.

    ids: int64 [T], maskable: bool [T], False at special tokens, row_of: int64 [T], ascending row numbers from 0, all on the
    CPU. A generator on `device` draws. How many tokens of a row are chosen is drawn on the CPU, from the binomial
    distribution, and which ones on the device: the same as a draw for each token, but no size has to be read back.
    """
    generator = torch.Generator(device).manual_seed(seed)
    candidates = np.bincount(row_of, weights=maskable.numpy()).astype(np.int64)
    counts = np.random.default_rng(seed).binomial(candidates, probability)
    # in order: row after row, within a row the maskable tokens first, shuffled
    draw = torch.rand(len(ids), generator=generator, device=device, dtype=torch.float64)
    order = (draw / 2 + send(torch.from_numpy(row_of + 0.5 * ~maskable.numpy()), device)).argsort()
    rank = np.arange(len(ids)) - np.searchsorted(row_of, row_of)
    chosen = np.flatnonzero(rank < counts[row_of])
    places = order[send(torch.from_numpy(chosen), device)].sort().values
    ids = send(ids, device)
    targets = ids[places]
    kind = torch.rand(len(chosen), generator=generator, device=device)
    pieces = torch.randint(vocab_size, (len(chosen),), generator=generator, device=device)
    shown = torch.where(kind < 0.8, mask_id, torch.where(kind < 0.9, pieces, targets))
    return Masked(ids.index_copy(0, places, shown), places, targets, row_of[chosen])
