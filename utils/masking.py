"""BERT's masking for masked language modelling (Devlin et al. 2019, section 3.1)."""

from collections.abc import Sequence

import torch


def special_mask(ids: torch.Tensor, special_ids: Sequence[int]) -> torch.Tensor:
    """True where `ids` (any shape) is one of `special_ids`; bool, same shape and device."""
    return torch.isin(ids, torch.tensor(special_ids, dtype=ids.dtype, device=ids.device))


def mask_tokens(
    ids: torch.Tensor,
    maskable: torch.Tensor,
    mask_id: int,
    vocab_size: int,
    generator: torch.Generator,
    probability: float = 0.15,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs, chosen): each maskable token is chosen with `probability`; of the chosen, 80 % become `mask_id`, 10 %
    a WordPiece drawn from all `vocab_size`, 10 % stay. inputs: int64, chosen: bool, both of the shape of `ids`.

    ids: int64, any shape; maskable: bool, same shape, False at special tokens; `generator`: on the device of `ids`.
    What is drawn depends on the generator and the shape alone, so that the same seed gives the same masks.
    """
    draw = torch.rand(ids.shape, generator=generator, device=ids.device)
    random_ids = torch.randint(vocab_size, ids.shape, generator=generator, device=ids.device)
    chosen = maskable & (draw < probability)
    # One draw decides both: below probability it is uniform again, so its first 8 tenths and the next one are at hand.
    replaced = torch.where(draw < 0.9 * probability, random_ids, ids)
    inputs = torch.where(draw < 0.8 * probability, mask_id, replaced)
    return torch.where(chosen, inputs, ids), chosen
