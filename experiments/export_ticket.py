"""Export a ticket: a Hugging Face folder with m * theta_0, mask, vocabulary and model card."""

if __name__ == "__main__":
    import _root  # noqa: F401

import dataclasses
from pathlib import Path

from experiments import paper
from utils import cli, files, hub
from utils.data import hub as hub_data
from utils.data.glue import SPECS
from utils.errors import UserError
from utils.modeling import bert, saving
from utils.pruning import mask_files, masks
from utils.pruning.origin import Origin, read_origin, write_origin
from utils.runs.records import read_records

FOUND_BY = {
    "imp": "iterative magnitude pruning",
    "omp": "one-shot magnitude pruning",
    "random": "a random draw",
    "layerwise": "one-shot magnitude pruning of each matrix",
    "shuffled": "a permutation of another mask within each matrix",
    "omp+imp": "one-shot pruning of the encoder and iterative magnitude pruning of the pooler",
    "imp+omp": "iterative magnitude pruning of the encoder and one-shot pruning of the pooler",
}
REWINDS = {
    "theta_i": "rewinding",
    "none": "no rewinding (standard pruning)",
    "encoder": "rewinding the encoder only",
}
METRICS = {"acc": "accuracy", "mcc": "matthews_correlation", "pearson": "pearsonr"}
CARD = """\
---
library_name: transformers
license: apache-2.0
tags: [bert, lottery-ticket, pruning]
{metadata}---

# {sparsity:.0%} sparse ticket of BERT{found_on}

A subnetwork m * theta_0 of a pre-trained BERT, after *The Lottery Ticket Hypothesis for \
Pre-trained BERT Networks* (Chen et al., NeurIPS 2020, arXiv 2007.12223). \
It is not trained on any task: fine-tune it with its mask fixed.

| | |
|---|---|
{table}
{scores}
The mask is in `{mask}`: `numpy.packbits` of each flattened matrix, with the shapes in the \
metadata. `BertModel.from_pretrained("{name}")` loads the weights alone. This loads them with \
the mask, which stays fixed while you train `model`:

    import json
    import math

    import numpy as np
    import torch
    from safetensors import safe_open
    from torch.nn.utils import prune
    from transformers import AutoTokenizer, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained("{name}")
    model = BertForSequenceClassification.from_pretrained("{name}", num_labels=2)
    with safe_open("{name}/{mask}", framework="numpy") as file:
        for key, shape in json.loads(file.metadata()["{shapes}"]).items():
            bits = np.unpackbits(file.get_tensor(key), count=math.prod(shape))
            module = model.get_submodule(key.removesuffix(".{suffix}"))
            prune.custom_from_mask(module, "weight", torch.from_numpy(bits).view(shape))

After training, `prune.remove(module, "weight")` makes the zeros of each module permanent. The \
reproduction's scripts accept this folder as a mask:

    python glue_trans.py --dir pre --model_name_or_path {model} --mask_dir {name} ...
"""


def score_table(mask_file: Path, digest: str) -> str:
    """Return the final scores of the run that found the mask, as Markdown; "" without any."""
    records, _ = read_records(mask_file.parent.parent / files.RESULTS)
    found = [record for _, record in records if record.final and record.score is not None]
    if digest not in {record.mask_sha256 for record in found}:
        return ""
    lines = [f"| {each.sparsity:.0%} | {each.score:.2f} |\n" for each in found]
    return (
        f"\nScores of the run that found it:\n\n| sparsity | score |\n|---|---|\n{''.join(lines)}"
    )


def card(origin: Origin, name: str, model: str, matrices: int, scores: str) -> str:
    """Return the model card of the exported folder `name`: source and use of the ticket."""
    task, step = paper.NAMES.get(origin.task or "", origin.task), origin.rewind_steps
    rows = {
        "theta_0": model,
        "sparsity": f"{origin.sparsity:.4%} of {matrices} weight matrices (encoder, pooler)",
        "mask found by": FOUND_BY.get(origin.method or "", "an unrecorded method"),
        "on": task,
        "seed": origin.seed,
        "with": REWINDS.get(origin.rewind or ""),
        "rewound to step": f"{step}, to theta_i; this folder holds m * theta_0" if step else None,
        "sha256 of the mask": origin.mask_sha256,
    }
    metadata = {"base_model": None if Path(model).exists() else model}
    spec = SPECS.get(origin.task or "")
    if spec and spec.name.removesuffix("-mm") in paper.TASKS:  # not a task of the user's own
        metadata |= {"datasets": hub_data.GLUE, "metrics": METRICS[spec.metric]}
    elif origin.task == "squad":
        metadata |= {"datasets": hub_data.SQUAD, "metrics": "squad"}
    lines = "".join(f"{key}: {value}\n" for key, value in metadata.items() if value)
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value is not None)
    where = {"metadata": lines, "found_on": f", found on {task}" if task else ""}
    where |= {"scores": scores, "mask": files.PACKED_MASK, "shapes": mask_files.SHAPES}
    where |= {"suffix": masks.SUFFIX.removeprefix(".")}
    return CARD.format(sparsity=origin.sparsity, table=table, name=name, model=model, **where)


def export(mask_file: Path, source: str, out: Path, cache_dir: str | None) -> None:
    """Write the ticket of `mask_file` and the BERT `source` to the new folder `out`, atomically.

    `mask_file` is a mask.pt (of this project or the released code) or an exported folder. Raises
    UserError if `out` exists, or if the mask or the model is wrong.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; give a new folder")
    config = bert.load_config(source, cache_dir)
    tokenizer = bert.load_tokenizer(source, None, cache_dir)
    model = bert.load_model(bert.SequenceClassifier, source, config, seed=0, cache_dir=cache_dir)
    mask = mask_files.load(mask_file, masks.shapes(model))
    masks.attach(model, mask)
    sparsity, digest = masks.sparsity(mask), masks.digest(mask)
    origin = read_origin(mask_file, digest) or Origin()
    origin = dataclasses.replace(origin, sparsity=sparsity, mask_sha256=digest)
    with files.atomic_folder(out) as folder:
        saving.save_pretrained(model.bert, tokenizer, folder)
        mask_files.pack_mask(mask, folder / files.PACKED_MASK)
        write_origin(folder / files.PACKED_MASK, origin)
        scores = score_table(mask_file, digest)
        files.write_text(folder / "README.md", card(origin, out.name, source, len(mask), scores))


def main(argv: list[str] | None = None) -> None:
    """Export the ticket and print the files written."""
    parser = cli.OneLineParser(__doc__)
    add = parser.add_argument
    add("mask", type=Path, help="mask file, such as checkpoint-STEP/mask.pt of an IMP run")
    add("out", type=Path, help="folder to write; must not exist")
    add("--model", required=True, help="hub name or local folder of theta_0")
    add("--cache_dir", help="folder for downloaded models, instead of the default location")
    text = "hub name (USER/NAME) of a model repository to upload the folder to"
    add("--push_to_hub", metavar="NAME", help=text)
    args = parser.parse_args(argv)
    export(args.mask, args.model, args.out, args.cache_dir)
    print(f"{args.out}: {', '.join(sorted(entry.name for entry in args.out.iterdir()))}")
    if args.push_to_hub:
        print(hub.upload(args.out, args.push_to_hub))


if __name__ == "__main__":
    cli.run(main)
