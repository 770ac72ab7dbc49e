"""What config.json says: whether packed sequences can compute the model, and its classes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import BertConfig
from transformers.activations import ACT2FN

from utils import files, schema
from utils.data.glue import namings
from utils.errors import UserError

SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "max_position_embeddings", "type_vocab_size"),
)
MAX_SIZE = 10**6
FRACTIONS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
    *("layer_norm_eps", "initializer_range"),
)
# Keys of config.json, the condition for (value, config), and what the value must be. transformers
# checks the types.
CONDITIONS: tuple[tuple[tuple[str, ...], Callable[[Any, BertConfig], bool], str], ...] = (
    (SIZES, lambda v, _: 0 < v <= MAX_SIZE, f"between 1 and {MAX_SIZE:,}"),
    (("hidden_size",), lambda v, c: v % c.num_attention_heads == 0, "a multiple of the heads"),
    (("pad_token_id",), lambda v, c: v is None or 0 <= v < c.vocab_size, "below the vocab_size"),
    (FRACTIONS, lambda v, _: v is None or 0 <= v < 1, "at least 0 and below 1"),
    (("hidden_act",), lambda v, _: v in ACT2FN, "an activation of transformers, such as gelu"),
    (("is_decoder", "add_cross_attention"), lambda v, _: not v, "false"),
    (("chunk_size_feed_forward",), lambda v, _: v == 0, "0"),
    (("position_embedding_type",), lambda v, _: v in (None, "absolute"), "absolute"),
)


def check_config(source: str, config: BertConfig) -> None:
    """Raise UserError naming the key if packed sequences cannot compute this model."""
    for keys, is_good, needed in CONDITIONS:
        for key in keys:
            value = getattr(config, key, None)
            if not is_good(value, config):
                raise UserError(f"{source}: config.json: {key} {value!r} must be {needed}")


def order_of_classes(source: str, own: list[str], content: dict[str, Any]) -> list[int]:
    """Return the rows of a stored head in the order of the classes `own`, matched by name.

    `content` is the config.json of `source`, which may also name the classes by the labels in the
    data, such as 0 and 1. Case, spaces and hyphens do not count. A warning shows another order, and
    names of other classes; then the order is kept, as in a run of an earlier version.
    """
    stored = {name: number for number, name in (content.get("id2label") or {}).items()}
    kept = list(range(len(own)))
    for names in namings(own):
        wanted = [_class_name(name) for name in names]
        # run_glue reads label2id; other code may have set only one of the two
        for numbers in (content.get("label2id") or {}, stored):
            rows = {_class_name(name): str(number) for name, number in numbers.items()}
            if sorted(rows) == sorted(wanted) and sorted(rows.values()) == [*map(str, kept)]:
                order = [int(rows[name]) for name in wanted]
                if order == kept or _is_of_earlier_version(source):
                    return kept
                files.warn(f"{source}: the classes of its head are put in the task's order by name")
                return order
    if not all(re.fullmatch(r"(label_)?\d+", _class_name(name)) for name in stored):
        files.warn(
            f"{source}: the classes of its head are {', '.join(map(str, stored))}, those of this "
            f"task {', '.join(own)}; their order is kept"
        )
    return kept


def _is_of_earlier_version(source: str) -> bool:
    """Return whether the run.json of the model shows a version that saved foreign names.

    The head of such a model has the task's own order. A copy without its run.json is not known.
    """
    folder = Path(source).resolve()
    folder = folder.parent if folder in files.model_folders(folder.parent) else folder
    owner = schema.read(folder / files.RUN, dict)
    return owner is not None and "arguments" in owner and not owner.get("directory")


def _class_name(name: Any) -> str:
    return re.sub(r"[\s_-]+", "_", str(name).strip().lower())
