"""Narrow BERT models, and masks by a full sort, for the tests of pruning."""

import numpy as np
import torch
from transformers import BertConfig

from utils.modeling import bert
from utils.pruning.masks import SUFFIX

CLASSES = (bert.SequenceClassifier, bert.QuestionAnswerer, bert.MaskedLanguageModel)
QUERY = "bert.encoder.layer.0.attention.self.query.weight_mask"


def tiny_model(cls=bert.SequenceClassifier, layers=2, width=8, seed=0):
    """A task model with weights drawn by `seed`."""
    config = BertConfig(
        vocab_size=20,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=3 * width,
        max_position_embeddings=16,
    )
    config._attn_implementation = "packed_rows"
    return bert.load_model(cls, None, config, seed, "rand")


def count_dropped(mask):
    return sum(int((~m).sum()) for m in mask.values())


def count_weights(mask):
    return sum(m.numel() for m in mask.values())


def mask_by_sorting(values, count, kept=None):
    """The mask without the `count` smallest, by a stable sort; masked weights are smallest."""
    sizes = np.concatenate([v.abs().numpy().ravel() for v in values.values()])
    if kept:
        sizes[~np.concatenate([kept[name + SUFFIX].numpy().ravel() for name in values])] = -1
    keep = np.ones(len(sizes), bool)
    keep[np.argsort(sizes, kind="stable")[:count]] = False
    pieces = torch.split(torch.from_numpy(keep), [v.numel() for v in values.values()])
    return {
        name + SUFFIX: piece.view(values[name].shape)
        for name, piece in zip(values, pieces, strict=True)
    }


def equal(one, other):
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)
