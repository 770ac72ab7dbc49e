"""BERT task models: loading from a hub name or a folder, seeded heads, compilation."""

import functools
import logging
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AttentionInterface, BertConfig, BertModel, BertTokenizer
from transformers.models.bert import modeling_bert
from transformers.utils import logging as hf_logging

from utils.errors import UserError
from utils.modeling.attention import PACKED_ROWS, packed_attention
from utils.pruning import masks

MAX_COMPILED = 32  # graphs of a layer: training or evaluation, full rows or not, ...
COMPILERS = {"cpu": ("C++", "CXX", "g++", "clang++"), "cuda": ("C", "CC", "gcc", "clang")}
REMEDY = "give --model_name_or_path a local folder with config.json, model weights and vocab.txt"


class BertTaskModel(modeling_bert.BertPreTrainedModel):
    """A BERT encoder `bert` with a pooler, and a task head.

    transformers 5 omits the pooler of two task models. Here every model has one, so that masks
    cover the same matrices.
    """

    bert: BertModel
    trains_pooler: ClassVar[bool] = False  # whether the loss depends on the pooler

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        if self.bert.pooler is None:
            self.bert.pooler = modeling_bert.BertPooler(config)


class SequenceClassifier(BertTaskModel, modeling_bert.BertForSequenceClassification):
    """The GLUE model: pooler, dropout, linear head."""

    trains_pooler = True


class QuestionAnswerer(BertTaskModel, modeling_bert.BertForQuestionAnswering):
    """The SQuAD model: start and end logits of each token."""


class MaskedLanguageModel(BertTaskModel, modeling_bert.BertForMaskedLM):
    """The MLM model: a score of each WordPiece, by the word embeddings."""


@functools.cache
def set_library_defaults() -> None:
    """Register the packed attention and silence the Hugging Face libraries; the loaders call it."""
    AttentionInterface.register(PACKED_ROWS, packed_attention)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every retry
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans for every new shape of a batch


def load_tokenizer(source: str, lower: bool | None, cache_dir: str | None = None) -> BertTokenizer:
    """Return the WordPiece tokenizer of `source`; `lower` None keeps the model's own setting.

    Raises UserError if there is none.
    """
    _need_file(source, "vocab.txt", "tokenizer.json")
    options = {} if lower is None else {"do_lower_case": lower}
    tokenizer = _load(BertTokenizer.from_pretrained, source, cache_dir=cache_dir, **options)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def load_config(source: str, cache_dir: str | None = None, **changes: Any) -> BertConfig:
    """Return the BERT configuration of `source`, with `changes`.

    Raises UserError if there is none, or if it describes another kind of model.
    """
    _need_file(source, "config.json")
    changes["attn_implementation"] = PACKED_ROWS
    config = _load(BertConfig.from_pretrained, source, cache_dir=cache_dir, **changes)
    content, _ = _load(BertConfig.get_config_dict, source, cache_dir=cache_dir)
    kind = content.get("model_type", "bert")  # BertConfig accepts any model's
    if kind != "bert":
        raise UserError(f"{source}: a model of type {kind}, not a BERT; give a BERT")
    return config


def load_model(
    cls: type[BertTaskModel],
    source: str | None,
    config: BertConfig,
    seed: int,
    init: str = "pre",
    cache_dir: str | None = None,
) -> BertTaskModel:
    """Return a task model on the CPU, without masks.

    init "pre": load the encoder from `source`, and the head if `source` has it; "rand": draw every
    weight. A draw depends on `seed` and the shapes only: the same encoder for every task, the same
    head for every encoder.
    Raises UserError that names the tensor if an encoder weight is missing or unexpected.
    """
    set_library_defaults()
    with torch.random.fork_rng(devices=[]):  # transformers draws weights, too
        if init == "rand":
            model = cls(config)
            draw_weights(model, seed)
            return model
        assert source is not None, "pre-trained weights need a source"
        options: dict[str, Any] = {"config": config, "cache_dir": cache_dir, "dtype": torch.float32}
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = _load(cls.from_pretrained, source, **options)
    mismatched = [key for key, *_ in info["mismatched_keys"]]
    problems = {
        "encoder weight {} is missing ({} in all); not a whole BERT": info["missing_keys"],
        "encoder weight {} ({} in all) has another shape than config.json gives it": mismatched,
        "unexpected encoder weight {} ({} in all); not in config.json": info["unexpected_keys"],
    }
    for problem, keys in problems.items():
        if found := sorted(filter(_is_encoder_weight, keys)):
            raise UserError(f"{source}: {problem.format(found[0], len(found))}")
    if info["missing_keys"] or mismatched:
        draw_weights(model, seed, head_only=True)
    return model


def _is_encoder_weight(key: str) -> bool:
    if key.endswith(("position_ids", "seq_relationship.weight")):
        return False  # a buffer of old checkpoints, and a pre-training head
    return ".layer." in key or key.startswith(("bert.", "encoder."))


def _need_file(source: str, *names: str) -> None:
    """Without configuration or vocabulary, transformers would silently use its defaults."""
    if os.path.isdir(source) and not any((Path(source) / name).exists() for name in names):
        raise UserError(f"{source}: the model folder has no {names[0]}; put it there")


def _load(loader: Callable[..., Any], source: str, **options: Any) -> Any:
    """Call a `from_pretrained`; any error of a wrong or unreachable source becomes a UserError."""
    set_library_defaults()
    try:
        return loader(source, **options)
    except Exception as error:  # the hub client, JSON, torch and safetensors have their own kinds
        problem = "no such model folder, and not available from the hub"
        if os.path.isdir(source):
            problem = "the model folder cannot be loaded"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
        raise UserError(f"{source}: {problem} ({reason}); {REMEDY}") from error


def reload(model: BertTaskModel, folder: str) -> None:
    """Load the weights saved in `folder` into `model`; attached masks stay as they are.

    Raises UserError if a weight is missing.
    """
    options = {"config": model.config, "output_loading_info": True}
    saved, info = _load(type(model).from_pretrained, folder, **options)
    if info["missing_keys"]:
        raise UserError(
            f"{folder}: {sorted(info['missing_keys'])[0]} is missing; this checkpoint belongs to "
            "another task; leave out --eval_all_checkpoints, or give a run of this task"
        )
    plain = saved.state_dict()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(plain[name.replace("weight_orig", "weight")])


def draw_weights(model: BertTaskModel, seed: int, head_only: bool = False) -> None:
    """Initialise as BERT does: normal weights, zero biases, unit LayerNorm.

    The encoder draws by `seed`, the head gamma_0 by `seed + 1`, whichever model they belong to.
    `head_only` leaves the encoder unchanged, with the embeddings that the MLM head shares.
    """
    of_encoder = torch.Generator().manual_seed(seed)
    of_head = torch.Generator().manual_seed(seed + 1)
    embeddings = model.bert.embeddings.word_embeddings.weight
    for name, module in model.named_modules():
        in_encoder = name.startswith("bert")
        if in_encoder and head_only:
            continue
        for kind, parameter in module.named_parameters(recurse=False):
            if kind == "bias":
                nn.init.zeros_(parameter)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(parameter)
            elif in_encoder or parameter is not embeddings:
                generator = of_encoder if in_encoder else of_head
                nn.init.normal_(parameter, 0.0, model.config.initializer_range, generator)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight.data[module.padding_idx].zero_()


def compile_layers(model: BertTaskModel, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the encoder layers in place: a few graphs for all layers and any number of tokens.

    Masks act within the graphs. Parameters, names and the draws of dropout do not change; results
    change by rounding only.
    """
    # Without fallback_random, inductor draws other random numbers than eager mode.
    options = {"fallback_random": True} if backend == "inductor" else None
    torch._dynamo.config.recompile_limit = MAX_COMPILED
    masks.for_compiled_layers(model)
    for layer in model.bert.encoder.layer:
        layer.compile(dynamic=True, backend=backend, options=options)


def check_compiler(device: torch.device) -> None:
    """Raise UserError if torch.compile lacks a compiler (C++; C for a GPU) or Python's header."""
    language, variable, *usual = COMPILERS[device.type]
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not any(map(shutil.which, (os.environ.get(variable, usual[0]), *usual))):
        missing = f"a {language} compiler such as {usual[0]}"
    elif not header.exists():
        missing = f"{header}, of Python's development files"
    else:
        return
    raise UserError(f"--compile needs {missing}; install it, or leave the flag out")


def check_length(config: BertConfig, flag: str, length: int) -> None:
    """Raise UserError if the model has no position embeddings for rows of `length` tokens."""
    positions = config.max_position_embeddings
    if not 3 <= length <= positions:
        raise UserError(f"{flag} {length} must lie between 3 and the model's {positions} positions")


def check_vocabulary(config: BertConfig, tokenizer: BertTokenizer) -> None:
    """Raise UserError if the tokenizer has WordPieces without an embedding in the model."""
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"--tokenizer_name: the vocabulary has {len(tokenizer)} WordPieces, the model only "
            f"{config.vocab_size} embeddings; give the vocabulary that belongs to the model"
        )
