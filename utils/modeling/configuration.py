"""What config.json says: whether packed sequences can compute the model, and its classes."""

import re
from collections.abc import Callable
from typing import Any

from transformers import BertConfig
from transformers.activations import ACT2FN

from utils import files
from utils.errors import UserError

SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_labels"),
    *("intermediate_size", "max_position_embeddings", "type_vocab_size"),
)
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
MAX_WEIGHTS = 2 * 10**9  # 8 GB; BERT-large has 0.34e9
GENERIC = re.compile(r"(label_)?\d+")  # names of classes that say nothing
# What packed sequences can compute: keys of config.json, the condition for (value, config), and
# what the value must be.
CONDITIONS: tuple[tuple[tuple[str, ...], Callable[[Any, BertConfig], bool], str], ...] = (
    (SIZES, lambda v, _: type(v) is int and v > 0, "a positive integer"),
    (
        SIZES,
        lambda v, c: v < _largest(c) or _count_weights(c) <= MAX_WEIGHTS,
        "smaller: over 2e9 weights",
    ),
    (("hidden_size",), lambda v, c: v % c.num_attention_heads == 0, "a multiple of the heads"),
    (("pad_token_id",), lambda v, c: v is None or 0 <= v < c.vocab_size, "below the vocab_size"),
    (DROPOUTS, lambda v, _: v is None or 0 <= v < 1, "at least 0 and below 1"),
    (("layer_norm_eps", "initializer_range"), lambda v, _: 0 < v < 1, "between 0 and 1"),
    (("hidden_act",), lambda v, _: v in ACT2FN, "an activation of transformers, such as gelu"),
    (("is_decoder", "add_cross_attention"), lambda v, _: not v, "false"),
    (("chunk_size_feed_forward",), lambda v, _: v == 0, "0"),
    (("position_embedding_type",), lambda v, _: v in (None, "absolute"), "absolute"),
)


def check_config(source: str, config: BertConfig) -> None:
    """Raise UserError naming the key if a model of this configuration cannot run here."""
    for keys, is_good, needed in CONDITIONS:
        for key in keys:
            value = getattr(config, key, None)
            if not is_good(value, config):
                raise UserError(f"{source}: config.json: {key} {value!r} must be {needed}")


def _largest(config: BertConfig) -> int:
    return max(getattr(config, key) for key in SIZES)


def _count_weights(config: BertConfig) -> int:
    width, inner = config.hidden_size, config.intermediate_size
    rows = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
    return width * (rows + config.num_hidden_layers * (4 * width + 2 * inner))


def order_of_classes(source: str, own: list[str], content: dict[str, Any]) -> list[int]:
    """Return the rows of a stored head in the order of the classes `own`, matched by name.

    `content` is the config.json of `source`. A warning is printed if it names other classes; then
    the order is kept. Case, spaces and hyphens do not count.
    """
    own = [_class_name(name) for name in own]
    stored = {name: number for number, name in (content.get("id2label") or {}).items()}
    # run_glue reads label2id; other code may have set only one of the two
    for numbers in (content.get("label2id") or {}, stored):
        rows = {_class_name(name): str(number) for name, number in numbers.items()}
        if sorted(rows) == sorted(own) and sorted(rows.values()) == [*map(str, range(len(own)))]:
            return [int(rows[name]) for name in own]
    named = [_class_name(name) for name in stored]
    if not all(map(GENERIC.fullmatch, named)) and not all(map(GENERIC.fullmatch, own)):
        files.warn(
            f"{source}: the classes of its head are {', '.join(named)}, those of this task "
            f"{', '.join(own)}; their order is kept"
        )
    return list(range(len(own)))


def _class_name(name: Any) -> str:
    return re.sub(r"[\s_-]+", "_", str(name).strip().lower())
