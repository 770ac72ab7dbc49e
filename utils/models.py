"""BERT task models from a hub name or a folder: pooler always there, heads seeded, packed rows in, saved in HF format."""

import logging
import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import AttentionInterface, BertConfig, BertTokenizer
from transformers.models.bert.modeling_bert import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
)
from transformers.utils import logging as hf_logging

from utils import files, masks, ticket_format
from utils.errors import UserError
from utils.rows import Packed

hf_logging.set_verbosity_error()
hf_logging.disable_progress_bar()
logging.getLogger("huggingface_hub").setLevel(
    logging.ERROR
)  # it tells of every new try to reach the hub

WEIGHT_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
MOST_COMPILED = 32  # versions of a layer, for training and evaluation, padded rows or not, and so on; beyond, none
LOCAL_REMEDY = (
    "give --model_name_or_path a local folder with config.json, model weights and vocab.txt"
)


class SequenceClassifier(BertForSequenceClassification):
    """The GLUE model: pooler, dropout, linear head."""

    saved_as = "BertForSequenceClassification"
    trains_pooler = True
    head = ("classifier.",)


class QuestionAnswerer(BertForQuestionAnswering):
    """The SQuAD model with the pooler that transformers 5 leaves out, so that masks cover the same matrices."""

    saved_as = "BertForQuestionAnswering"
    trains_pooler = False
    head = ("qa_outputs.",)

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=True)
        self.post_init()


class MaskedLanguageModel(BertForMaskedLM):
    """The MLM model with the pooler that transformers 5 leaves out; no gradient reaches it, but it is ranked."""

    saved_as = "BertForMaskedLM"
    trains_pooler = False
    head = ("cls.",)

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=True)
        self.post_init()


def packed_attention(
    module, query, key, value, attention_mask, dropout=0.0, scaling=None, slots=None, grid=None, **_
):
    """Attention within each row of a packed batch.

    query, key, value: [1, heads, T, d]; grid: (B, W), the rows laid out with padding; slots: [T], each token's place in
    it; attention_mask: bool [B, 1, 1, W], or None where every row is full. Returns [1, T, heads, d].
    """
    gridded = [_to_grid(states, slots, *grid) for states in (query, key, value)]
    mixed = F.scaled_dot_product_attention(
        *gridded, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    flat = mixed.transpose(1, 2).flatten(0, 1)
    if len(slots) != len(flat):
        flat = flat.index_select(0, slots)  # on a GPU the backward pass of flat[slots] would sort
    return flat[None], None


def _to_grid(states: torch.Tensor, slots: torch.Tensor, rows: int, width: int) -> torch.Tensor:
    """[1, heads, T, d] -> [B, heads, W, d], zeros where no token stands."""
    tokens = states[0].transpose(0, 1)
    if len(slots) != rows * width:
        tokens = tokens.new_zeros(rows * width, *tokens.shape[1:]).index_copy_(0, slots, tokens)
    return tokens.reshape(rows, width, *tokens.shape[1:]).transpose(1, 2)


AttentionInterface.register("packed_rows", packed_attention)
torch.backends.cuda.enable_cudnn_sdp(
    False
)  # it makes a plan for every new shape, and batches come in ever new ones


def encode(bert: BertModel, batch: Packed) -> torch.Tensor:
    """Hidden states of a packed batch, [T, hidden]: only real tokens are computed.

    Where padding or equal lengths fill the grid, every bit is that of transformers' own forward and backward pass on it.
    """
    grid = (len(batch.lengths), batch.width)
    rows = (
        grid if batch.ids.numel() == math.prod(grid) else (1, -1)
    )  # a grid's rows share one gradient of their positions
    hidden = bert.embeddings(
        input_ids=batch.ids.view(rows),
        token_type_ids=batch.types.view(rows),
        position_ids=batch.positions.view(rows)[:1],
    )
    if rows == grid:
        shape = [1, batch.ids.numel(), hidden.shape[-1]]
        hidden = torch.ops.aten._unsafe_view(
            hidden, shape
        )  # to compiled layers a view would be another kind of input
    attended = None
    if not batch.full:
        attended = (torch.arange(batch.width, device=hidden.device) < batch.lengths[:, None])[
            :, None, None, :
        ]
    return bert.encoder(
        hidden, attention_mask=attended, slots=batch.slots, grid=grid
    ).last_hidden_state[0]


def pool(bert: BertModel, hidden: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """The pooler's output for each row's [CLS], [B, hidden]."""
    return bert.pooler(hidden.index_select(0, first)[:, None])


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Compile the encoder's layers in place by torch.compile: a few graphs for all of them, for any number of tokens.

    Masks act within the graphs; parameters, names and what dropout draws stay as they are, results up to rounding.
    """
    options = (
        {"fallback_random": True} if backend == "inductor" else None
    )  # its own random numbers would be others
    torch._dynamo.config.recompile_limit = MOST_COMPILED
    masks.keep_within_graphs(model)
    for layer in model.bert.encoder.layer:
        layer.compile(dynamic=True, backend=backend, options=options)


def load_tokenizer(
    source: str, lower_case: bool | None, cache_dir: str | None = None
) -> BertTokenizer:
    """The fast WordPiece tokenizer of `source`; `lower_case` None leaves the model's own setting. Raises UserError."""
    if os.path.isdir(source) and not any(
        (Path(source) / f).exists() for f in ("vocab.txt", "tokenizer.json")
    ):
        raise UserError(
            f"{source}: the model folder has no vocab.txt; put the model's vocabulary there"
        )
    options = {} if lower_case is None else {"do_lower_case": lower_case}
    tokenizer = _from_source(BertTokenizer, source, cache_dir=cache_dir, **options)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


class _RawConfig:
    """config.json as it stands: BertConfig takes any model's for its own."""

    @staticmethod
    def from_pretrained(source: str, **options) -> dict:
        return BertConfig.get_config_dict(source, **options)[0]


def load_config(source: str, cache_dir: str | None = None, **changes) -> BertConfig:
    """The BERT configuration of `source`. Raises UserError if there is none or it is not BERT's."""
    if os.path.isdir(source) and not (Path(source) / "config.json").exists():
        raise UserError(f"{source}: the model folder has no config.json; {LOCAL_REMEDY}")
    config = _from_source(BertConfig, source, cache_dir=cache_dir, **changes)
    kind = _from_source(_RawConfig, source, cache_dir=cache_dir).get("model_type", "bert")
    if kind != "bert":
        raise UserError(
            f"{source}: config.json describes a model of type {kind}, not a BERT; give a BERT"
        )
    config._attn_implementation = "packed_rows"
    return config


def load_model(
    cls,
    source: str | None,
    config: BertConfig,
    seed: int,
    init: str = "pre",
    cache_dir: str | None = None,
):
    """A task model (one of the three classes above) on the CPU, without masks.

    init "pre": encoder, and the head if `source` holds one, from `source`; "rand": every weight drawn anew. What is
    drawn depends on `seed` and the shapes alone: the same encoder for every task, the same head for every encoder.
    Raises UserError naming the tensor if an encoder weight is missing or unexpected.
    """
    if init == "rand":
        with torch.random.fork_rng(devices=[]):
            model = cls(config)
        draw_weights(model.bert, seed)
        draw_head(model, seed)
        return model
    model, info = _load_pretrained(cls, source, config, cache_dir)
    absent = set(info["missing_keys"]) | {key[0] for key in info["mismatched_keys"]}
    if any(key.startswith(cls.head) for key in absent):
        draw_head(model, seed)
    return model


def _load_pretrained(cls, source: str, config: BertConfig, cache_dir: str | None):
    if os.path.isdir(source) and not any((Path(source) / f).exists() for f in WEIGHT_FILES):
        raise UserError(
            f"{source}: the model folder has no weights (model.safetensors or pytorch_model.bin)"
        )
    with torch.random.fork_rng(devices=[]):
        model, info = _from_source(
            cls,
            source,
            config=config,
            cache_dir=cache_dir,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )
    wrong = [k for k in info["missing_keys"] if k.startswith("bert.")]
    if wrong:
        raise UserError(
            f"{source}: encoder weight {sorted(wrong)[0]} is missing ({len(wrong)} in all); not a whole BERT"
        )
    wrong = [k for k, *_ in info["mismatched_keys"] if k.startswith("bert.")]
    if wrong:
        raise UserError(
            f"{source}: encoder weight {sorted(wrong)[0]} has a shape that config.json does not give it"
        )
    wrong = [
        k for k in info["unexpected_keys"] if ".layer." in k or k.startswith(("bert.", "encoder."))
    ]
    wrong = [k for k in wrong if not k.endswith(("position_ids", "seq_relationship.weight"))]
    if wrong:
        raise UserError(
            f"{source}: unexpected encoder weight {sorted(wrong)[0]} ({len(wrong)} in all); "
            "config.json does not describe these weights"
        )
    return model, info


def _from_source(cls, source: str, **options):
    """`cls.from_pretrained`, with the many errors of a wrong or unreachable source told in one line."""
    if not os.path.isdir(source) and (source.count("/") > 1 or source.startswith((".", "/", "~"))):
        raise UserError(f"{source}: no such model folder; {LOCAL_REMEDY}")
    try:
        return cls.from_pretrained(source, **options)
    except (
        Exception
    ) as error:  # the hub client, JSON, torch and safetensors each raise kinds of their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
        if os.path.isdir(source):
            raise UserError(f"{source}: the model folder cannot be loaded ({reason})") from error
        raise UserError(
            f"{source}: not a local folder, and the hub did not give it ({reason}); {LOCAL_REMEDY}"
        ) from error


def draw_weights(part: nn.Module, seed: int, std: float | None = None) -> None:
    """Initialise `part` as BERT does: normal weights, zero biases, unit LayerNorm; by a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    for module in part.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(
                module.weight, std=std or part.config.initializer_range, generator=generator
            )
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx].detach())
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for name, parameter in part.named_parameters():
        if name.endswith("predictions.bias"):
            nn.init.zeros_(parameter)


def draw_head(model: nn.Module, seed: int) -> None:
    """gamma_0: draw the task head, leaving what it shares with the embeddings alone."""
    shared = model.bert.embeddings.word_embeddings.weight
    before = shared.detach().clone()
    for name, part in model.named_children():
        if name != "bert":
            part.config = model.config
            draw_weights(part, seed + 1)  # not the stream that drew the encoder
    with torch.no_grad():
        shared.copy_(before)


def load_perturbed(model: nn.Module, path: Path) -> None:
    """Set the encoder to the weights in `path` (written by pertub_weight.py or by an IMP run that rewinds to theta_i).

    Raises UserError naming file and key if a prunable weight is missing, mis-shaped or not finite.
    """
    values = {
        k.removesuffix("_orig"): v for k, v in masks.load_tensors(Path(path), "weight").items()
    }
    parameters = {name: p for name, p in model.named_parameters() if name.startswith("bert.")}
    missing = [f"{name}.weight" for name in masks.prunable(model) if f"{name}.weight" not in values]
    if missing:
        raise UserError(
            f"{path}: weight {missing[0]} is missing ({len(missing)} in all); not the weights of this encoder"
        )
    for name in sorted(values.keys() & parameters.keys()):
        if values[name].shape != parameters[name].shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(values[name].shape)}, this model needs "
                f"{tuple(parameters[name].shape)}; the weights belong to another architecture"
            )
        if not torch.isfinite(values[name]).all():
            raise UserError(f"{path}: {name} holds NaN or infinite values; write the file anew")
        parameters[name].data.copy_(values[name])


def save_pretrained(model: nn.Module, tokenizer, folder: Path) -> None:
    """Write the plain model (m * weights) with configuration and vocabulary, as Hugging Face folders are."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = type(model.config).from_dict(model.config.to_dict())
    config.architectures = [model.saved_as]
    config.save_pretrained(folder)
    save_file(masks.dense_state(model), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text(
        "".join(f"{word}\n" for word, _ in vocabulary), encoding="utf-8"
    )


def save_weights(weights: dict[str, torch.Tensor], path: Path, info: dict) -> None:
    """Write weights under their plain names, and `info` (where they come from) beside them, each whole or not at all."""
    plain = {
        name.replace("weight_orig", "weight"): value.detach().cpu().contiguous()
        for name, value in weights.items()
    }
    masks.save_tensors(plain, path)
    files.write_json(masks.info_path(path), info)


def match_names(
    weights: dict[str, torch.Tensor], like: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Plain names back to those of `like`, where a masked matrix is called weight_orig."""
    return {name: weights[name.replace("weight_orig", "weight")] for name in like}


def read_info(path: Path) -> dict | None:
    """What the file beside a mask or weight file tells of its origin; None where there is none."""
    path = Path(path)
    return files.read_json(
        masks.info_path(path / ticket_format.PACKED_MASK if path.is_dir() else path)
    )


def perturb(model: nn.Module, path: str | None, init: str) -> tuple[str, dict | None]:
    """Set the encoder to the weights in `path`, if given; what they are called in the results, and their origin.

    What the file lacks of the encoder (embeddings, LayerNorm) stays that of `init`, which is told where it is "rand".
    """
    if path is None:
        return init, None
    load_perturbed(model, Path(path))
    info = read_info(Path(path))
    mode = (info or {}).get("mode", "perturbed")
    return mode if init == "pre" else f"{init}+{mode}", info


def check_length(config: BertConfig, flag: str, length: int) -> None:
    """Raises UserError if rows of `length` tokens have no position embeddings."""
    if not 3 <= length <= config.max_position_embeddings:
        raise UserError(
            f"{flag} {length} must lie between 3 and the model's {config.max_position_embeddings} positions"
        )


def reload(model: nn.Module, folder: str) -> None:
    """Put the plain weights saved in `folder` into `model`, whose masks (if any) are set to ones where they act.

    Raises UserError if a weight is missing there.
    """
    saved, info = _from_source(type(model), folder, config=model.config, output_loading_info=True)
    if info["missing_keys"]:
        raise UserError(
            f"{folder}: {sorted(info['missing_keys'])[0]} is missing; this checkpoint is of another task, so "
            "leave out --eval_all_checkpoints, or give the folder of this task's run"
        )
    plain = saved.state_dict()
    own = model.state_dict()
    values = {
        name: plain[name.replace("weight_orig", "weight")]
        for name in own
        if not name.endswith(masks.SUFFIX)
    }
    model.load_state_dict(values, strict=False)


def check_vocabulary(config: BertConfig, tokenizer: BertTokenizer) -> None:
    """Raises UserError if the tokenizer has WordPieces that the model has no embedding for."""
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"--tokenizer_name: the vocabulary has {len(tokenizer)} WordPieces, the model's embeddings only "
            f"{config.vocab_size}; give the vocabulary that belongs to the model"
        )
