"""Models and weights on disk: Hugging Face folders, and files of encoder weights."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BertTokenizer, PreTrainedModel

from utils.modeling.bert import BertTaskModel
from utils.pruning import mask_files, masks
from utils.pruning.origin import Origin, read_origin, write_origin


def save_pretrained(model: PreTrainedModel, tokenizer: BertTokenizer, folder: Path) -> None:
    """Write m * weights, configuration and vocabulary as a Hugging Face folder.

    `model` is a task model, or an encoder (BertModel) alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = type(model.config).from_dict(model.config.to_dict())
    classes = type(model).__mro__
    config.architectures = [next(c.__name__ for c in classes if "transformers" in c.__module__)]
    config.save_pretrained(folder)
    save_file(masks.dense_state(model), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    (folder / "vocab.txt").write_text(_vocabulary_text(tokenizer.get_vocab()), encoding="utf-8")


def _vocabulary_text(ids: dict[str, int]) -> str:
    """Return the lines of vocab.txt: the token with id n on line n + 1.

    A duplicate in the source leaves an id without a token, and a token with a line break is only in
    tokenizer.json. Such a line repeats the next token: readers use the last line of a token.
    """
    lines: list[str] = []
    for token in sorted(ids, key=ids.__getitem__):
        if "\n" not in token and "\r" not in token:
            lines += [token] * (ids[token] + 1 - len(lines))
    return "".join(f"{line}\n" for line in lines)


def save_weights(
    weights: dict[str, torch.Tensor], path: Path, origin: Origin, overwrite: bool = True
) -> None:
    """Write weights to a torch file, and their origin beside it; each file atomically.

    Raises UserError without `overwrite` if the file has another content.
    """
    on_cpu = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    mask_files.save_tensors(on_cpu, path, overwrite)
    write_origin(path, origin)


def load_initial_weights(
    model: BertTaskModel, path: str | None, init: str
) -> tuple[str, Origin | None]:
    """Set the encoder to the weights in `path`, if given; return their name and origin.

    The file is written by pertub_weight.py, or holds theta_i of an IMP run. Weights that it lacks
    (embeddings, LayerNorm) stay those of `init`; the name shows it if that is "rand".
    Raises UserError that names file and key if a prunable weight is missing, or if a weight has a
    wrong shape or is not finite.
    """
    if path is None:
        return init, None
    content = mask_files.load_tensors(Path(path), "weight")
    values = {name.removesuffix("_orig"): value for name, value in content.items()}
    needed = {f"{name}.weight": shape for name, shape in masks.shapes(model).items()}
    own = {n: p for n, p in model.named_parameters() if n in values and n.startswith("bert.")}
    shapes = needed | {name: parameter.shape for name, parameter in own.items()}
    mask_files.check_shapes(Path(path), values, shapes)
    for name, parameter in own.items():
        mask_files.check_weight(path, name, values[name])
        parameter.data.copy_(values[name])
    origin = read_origin(Path(path))
    mode = (origin and origin.mode) or "perturbed"
    return (mode if init == "pre" else f"{init}+{mode}"), origin
