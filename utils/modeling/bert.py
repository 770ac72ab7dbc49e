"""BERT task models: loading from a hub name or a folder, seeded heads, compilation."""

import functools
import os
import pickle
import shutil
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AttentionInterface, BertConfig, BertModel, BertTokenizer, modeling_utils
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.models.bert import modeling_bert
from transformers.utils import cached_file
from transformers.utils import logging as hf_logging

from utils import files, hub
from utils.errors import UserError
from utils.modeling.attention import PACKED_ROWS, packed_attention
from utils.modeling.configuration import check_config, order_of_classes
from utils.pruning import mask_files, masks

MAX_COMPILED = 32  # graphs of a layer: training or evaluation, full rows or not, ...
COMPILERS = {"cpu": ("C++", "CXX", "g++", "clang++"), "cuda": ("C", "CC", "gcc", "clang")}
REMEDY = "give --model_name_or_path a local folder with config.json, model weights and vocab.txt"
POOLER = {"bert.pooler.dense.bias", "bert.pooler.dense.weight"}


class BertTaskModel(modeling_bert.BertPreTrainedModel):
    """A BERT encoder `bert` with a pooler, and a task head.

    transformers 5 omits the pooler of two task models. Here every model has one, so that masks
    cover the same matrices.
    """

    bert: BertModel
    trains_pooler: ClassVar[bool] = False  # whether the loss depends on the pooler
    untrained: tuple[str, ...] = ()  # weights drawn by the seed, of those that scores depend on

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
    hf_logging.set_verbosity(files.library_level())
    hf_logging.disable_progress_bar()
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans for every new shape of a batch


def load_tokenizer(source: str, lower: bool | None, cache_dir: str | None = None) -> BertTokenizer:
    """Return the WordPiece tokenizer of `source`; `lower` None keeps the model's own setting.

    Raises UserError if there is none, or if its vocabulary lacks a special token.
    """
    _need_file(source, "vocab.txt", "tokenizer.json")
    if lower is None:
        lower = _load(_own_lower_case, source, cache_dir=cache_dir)
    options = {} if lower is None else {"do_lower_case": lower}
    tokenizer = _load(BertTokenizer.from_pretrained, source, cache_dir=cache_dir, **options)
    # a missing token gets a new id; without any vocabulary, the five tokens are the vocabulary
    words = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    names = [f"{name}_token" for name in ("pad", "unk", "cls", "sep", "mask")]
    missing = [token for name in names if (token := str(getattr(tokenizer, name))) not in words]
    if missing or len(words) <= len(names):
        problem = f"the vocabulary has no {missing[0] if missing else 'WordPieces'}"
        raise UserError(f"{source}: {problem}; give the vocab.txt of a BERT, one WordPiece a line")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _own_lower_case(source: str, cache_dir: str | None) -> bool | None:
    """Return what tokenizer_config.json states, else what tokenizer.json does (None: no such file).

    BertTokenizer reads the vocabulary of tokenizer.json only.
    """
    stated = get_tokenizer_config(source, cache_dir=cache_dir).get("do_lower_case")
    causes = ("missing_entries", "connection_errors")
    quiet = {f"_raise_exceptions_for_{cause}": False for cause in causes}
    file = cached_file(source, "tokenizer.json", cache_dir=cache_dir, **quiet)
    if stated is not None or file is None:
        return stated
    normalizer = Tokenizer.from_file(file).normalizer
    return normalizer is not None and normalizer.normalize_str("A") == "a"


def load_config(source: str, cache_dir: str | None = None, **changes: Any) -> BertConfig:
    """Return the BERT configuration of `source`, with `changes`.

    Raises UserError if there is none, or if it describes a model that cannot run here.
    """
    _need_file(source, "config.json")
    config = _load(BertConfig.from_pretrained, source, cache_dir=cache_dir, **changes)
    content, _ = _load(BertConfig.get_config_dict, source, cache_dir=cache_dir)
    kind = content.get("model_type", "bert")  # BertConfig accepts any model's
    if kind != "bert":
        raise UserError(f"{source}: a model of type {kind}, not a BERT; give a BERT")
    check_config(source, config)
    config._attn_implementation = PACKED_ROWS
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
    head for every encoder. `untrained` names what was drawn.
    Raises UserError that names the tensor if an encoder weight is missing, unexpected or not
    finite. A BERT without a pooler gets one, with a warning.
    """
    set_library_defaults()
    with torch.random.fork_rng(devices=[]):  # transformers draws weights, too
        if init == "rand":
            model = _load(lambda _: cls(config), source or "--config_name")
            draw_weights(model, seed)
            model.untrained = ("every weight of --dir rand",)
            return model
        assert source is not None, "pre-trained weights need a source"
        options: dict[str, Any] = {"config": config, "cache_dir": cache_dir, "dtype": torch.float32}
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        options |= {"key_mapping": {rf"^{mask_files.WRAPPER.pattern}": ""}}
        model, info = _load(cls.from_pretrained, source, **options)
    mismatched = {key for key, *_ in info["mismatched_keys"]}
    absent = mismatched | info["missing_keys"]
    lacks_pooler = info["missing_keys"] >= POOLER
    missing = info["missing_keys"] - POOLER if lacks_pooler else info["missing_keys"]
    problems = {
        "encoder weight {} is missing ({} in all); not a whole BERT": missing,
        "encoder weight {} ({} in all) has another shape than config.json gives it": mismatched,
        "unexpected encoder weight {} ({} in all); not in config.json": info["unexpected_keys"],
    }
    for problem, keys in problems.items():
        if found := sorted(filter(_is_encoder_weight, keys)):
            raise UserError(f"{source}: {problem.format(found[0], len(found))}")
    if lacks_pooler:
        files.warn(f"{source}: no pooler, which masks cover; it is drawn by the seed {seed}")
        pooler, generator = model.bert.pooler.dense, torch.Generator().manual_seed(seed + 2)
        nn.init.normal_(pooler.weight, 0.0, config.initializer_range, generator)
        nn.init.zeros_(pooler.bias)
    if absent - POOLER:
        draw_weights(model, seed, head_only=True)
    elif isinstance(model, SequenceClassifier) and config.num_labels != 1:
        _load(functools.partial(_order_classes, model), source, cache_dir=cache_dir)
    _load(_check_dtypes, source)
    for name, parameter in model.named_parameters():
        mask_files.check_weight(source, name, parameter)
    model.untrained = tuple(sorted(absent if cls.trains_pooler else absent - POOLER))
    return model


def _order_classes(model: SequenceClassifier, source: str, cache_dir: str | None) -> None:
    """Put the classes of a head from `source` in the order of the task, by their names."""
    own = list((model.config.id2label or {}).values())
    content, _ = BertConfig.get_config_dict(source, cache_dir=cache_dir)
    rows = order_of_classes(source, own, content)
    for parameter in model.classifier.parameters():
        parameter.data = parameter.data[rows]


def _check_dtypes(source: str) -> None:
    """Raise ValueError for weights that are no floats; transformers would cast them."""
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        for file in Path(source).glob(pattern):
            tensors = modeling_utils.load_state_dict(str(file), map_location="meta")
            for key in filter(_is_encoder_weight, tensors):
                if tensors[key].dtype not in mask_files.FLOATS:
                    raise ValueError(f"{key} has the type {tensors[key].dtype}, not a float")


def _is_encoder_weight(key: str) -> bool:
    if key.endswith(("position_ids", "seq_relationship.weight")):
        return False  # a buffer of old checkpoints, and a pre-training head
    return ".layer." in key or key.startswith(("bert.", "encoder."))


def _need_file(source: str, *names: str) -> None:
    """Raise UserError if a folder has none of the files; transformers would use its defaults."""
    if os.path.isdir(source) and not any((Path(source) / name).is_file() for name in names):
        raise UserError(f"{source}: the model folder has no {names[0]}; put it there")


def _load(loader: Callable[..., Any], source: str, **options: Any) -> Any:
    """Call a `from_pretrained`; any error of a wrong or unreachable source becomes a UserError."""
    set_library_defaults()
    offline = "" if os.path.isdir(source) else hub.connect()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual tensors, which are refused
            return loader(source, **options)
    except Exception as error:  # the hub client, JSON, torch and safetensors have their own kinds
        problem = "no such model folder, and not available from the hub"
        if os.path.isdir(source):
            problem = "the model folder cannot be loaded"
        reason = offline or " ".join(str(error).split())[:150] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's message advises to trust the file
            reason = "its weights are not tensors only; refused, none of their code was run"
        raise UserError(f"{source}: {problem} ({reason}); {REMEDY}") from error


def reload(model: BertTaskModel, folder: str) -> None:
    """Load the weights saved in `folder` into `model`; attached masks stay as they are.

    Raises UserError if a weight is missing, has another shape or is not finite.
    """
    saved = load_model(type(model), folder, model.config, seed=0)
    if saved.untrained:
        raise UserError(
            f"{folder}: {saved.untrained[0]} is missing; this checkpoint belongs to another task; "
            "leave out --eval_all_checkpoints, or give a run of this task"
        )
    masks.rewind(model, saved.state_dict())


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


def check_trained(model: BertTaskModel, source: str) -> None:
    """Raise UserError if an evaluation would score weights that nobody trained."""
    if model.untrained:
        raise UserError(
            f"{source}: trained weights for this task are missing: {', '.join(model.untrained)}; "
            "add --do_train, or give --model_name_or_path a model that was trained on this task"
        )


def check_length(config: BertConfig, flag: str, length: int, texts: int = 1) -> None:
    """Raise UserError if the model lacks embeddings for rows of `length` tokens in 1 or 2 texts."""
    if config.type_vocab_size < texts:
        problem = f"type_vocab_size {config.type_vocab_size}: this task has pairs of texts, needs 2"
        raise UserError(f"the model's config.json: {problem}; give another model")
    positions = config.max_position_embeddings
    if not 3 <= length <= positions:
        raise UserError(f"{flag} {length} must lie between 3 and the model's {positions} positions")


def check_vocabulary(config: BertConfig, tokenizer: BertTokenizer) -> None:
    """Raise UserError if the tokenizer has WordPieces without an embedding in the model."""
    size = max(tokenizer.get_vocab().values()) + 1  # a vocabulary with duplicates skips ids
    if size > config.vocab_size:
        raise UserError(
            f"--tokenizer_name: the vocabulary has {size} WordPieces, the model only "
            f"{config.vocab_size} embeddings; give the vocabulary that belongs to the model"
        )
