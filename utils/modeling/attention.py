"""BERT's encoder on packed sequences: attention within each row, and no computation on padding."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertModel

from utils.modeling.packing import Packed

PACKED_ROWS = "packed_rows"  # name of packed_attention in transformers' AttentionInterface


def packed_attention(  # noqa: PLR0913 - the interface of transformers' attention functions
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    slots: torch.Tensor,
    grid: tuple[int, int],
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each row of a packed batch.

    query, key, value: [1, heads, T, d]; grid: (B, W), the shape of the padded rows;
    slots: [T], index of each token in the grid; attention_mask: bool [B, 1, 1, W], None if
    every row is full. Returns [1, T, heads, d].
    """
    query, key, value = (_to_grid(states, slots, *grid) for states in (query, key, value))
    mixed = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    flat = mixed.transpose(1, 2).flatten(0, 1)
    if len(slots) != len(flat):
        flat = flat.index_select(0, slots)  # on a GPU the backward pass of flat[slots] would sort
    return flat[None], None


def _to_grid(states: torch.Tensor, slots: torch.Tensor, rows: int, width: int) -> torch.Tensor:
    """[1, heads, T, d] -> [B, heads, W, d], zeros at padding."""
    tokens = states[0].transpose(0, 1)
    if len(slots) != rows * width:
        empty = tokens.new_zeros(rows * width, *tokens.shape[1:])
        tokens = empty.index_copy_(0, slots, tokens)
    return tokens.reshape(rows, width, *tokens.shape[1:]).transpose(1, 2)


def encode(bert: BertModel, packed: Packed) -> torch.Tensor:
    """Return the hidden states of a packed batch, [T, hidden].

    If the tokens fill the grid, every bit of the forward and backward pass is that of
    transformers on the padded batch.
    """
    grid = (len(packed.lengths), packed.width)
    # Rows that fill the grid share one gradient of their position embeddings, as in transformers.
    shape = grid if packed.ids.numel() == math.prod(grid) else (1, -1)
    hidden = bert.embeddings(
        input_ids=packed.ids.view(shape),
        token_type_ids=packed.types.view(shape),
        position_ids=packed.positions.view(shape)[:1],
    )
    if shape == grid:
        # A copy: torch.compile would compile the layers a second time for a view.
        hidden = hidden.view(1, -1, hidden.shape[-1]).clone()
    attended = None
    if not packed.full:
        columns = torch.arange(packed.width, device=hidden.device)
        attended = (columns < packed.lengths[:, None])[:, None, None, :]
    encoded = bert.encoder(hidden, attention_mask=attended, slots=packed.slots, grid=grid)
    return encoded.last_hidden_state[0]


def pool(bert: BertModel, hidden: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Return the pooler's output for the [CLS] of each row, [B, hidden]."""
    starts = hidden.index_select(0, first)[:, None]
    return bert.pooler(starts)  # type: ignore[misc]  # every BertTaskModel has a pooler
