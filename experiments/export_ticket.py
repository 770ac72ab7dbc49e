"""Publish a ticket: a Hugging Face folder with m * theta_0, the mask (one bit a weight), vocabulary and a model card."""

import argparse
import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # so that `python experiments/export_ticket.py` finds utils

from experiments import paper
from utils import cli, files, masks, models, ticket_format
from utils.errors import UserError

FOUND_BY = {
    "imp": "iterative magnitude pruning",
    "omp": "one-shot magnitude pruning",
    "random": "a random draw",
}
REWINDS = {
    "theta_i": "rewinding",
    "none": "no rewinding (standard pruning)",
    "encoder": "rewinding the encoder only",
}


def card(info: dict, name: str, model: str, sparsity: float, matrices: int) -> str:
    """The model card (README.md) of the exported folder `name`: what the ticket is and how to use it."""
    task = paper.NAMES.get(info.get("task"), info.get("task"))
    rows = {
        "theta_0": model,
        "sparsity": f"{sparsity:.4%} of the weights of {matrices} matrices (encoder and pooler)",
        "mask found by": FOUND_BY.get(info.get("method"), "a way that is not recorded"),
        "on": task,
        "seed": info.get("seed"),
        "with": REWINDS.get(info.get("rewind")),
        "rewound to step": info.get("rewind_steps") or None,
        "sha256 of the mask": info.get("mask_sha256"),
    }
    lines = [
        "---",
        "library_name: transformers",
        "tags: [bert, lottery-ticket, pruning]",
        "---",
        "",
        f"# {sparsity:.0%} sparse ticket of BERT" + (f", found on {task}" if task else ""),
        "",
        "A subnetwork m * theta_0 of a pre-trained BERT after *The Lottery Ticket Hypothesis for Pre-trained BERT "
        "Networks* (Chen et al., NeurIPS 2020, arXiv 2007.12223): not trained on any task, to be fine-tuned with its "
        "mask held.",
        "",
        "| | |",
        "|---|---|",
    ]
    lines += [f"| {key} | {value} |" for key, value in rows.items() if value is not None]
    if info.get("rewind_steps"):
        lines += [
            "",
            "The mask belongs with theta_i, the weights after that many steps; stored here is m * theta_0.",
        ]
    lines += [
        "",
        "The weights, without their mask:",
        "",
        "    from transformers import BertModel",
        f'    model = BertModel.from_pretrained("{name}")',
        "",
        f"The mask is in `{ticket_format.PACKED_MASK}`: `numpy.packbits` of each flattened matrix, shapes in the "
        "metadata. The reproduction's scripts take this folder as a mask:",
        "",
        f"    python glue_trans.py --dir pre --model_name_or_path {model} --mask_dir {name} ...",
    ]
    return "\n".join(lines) + "\n"


def export(mask_file: Path, source: str, out: Path, cache_dir: str | None = None) -> None:
    """Write the ticket of `mask_file` and the BERT `source` to the folder `out`, whole or not at all.

    `mask_file`: a mask.pt (of this project or the released code) or an exported folder. Raises UserError naming what
    is wrong with mask or model, or if `out` is there already.
    """
    if out.exists():
        raise UserError(f"{out}: is there already; give a folder that is not")
    config = models.load_config(source, cache_dir)
    tokenizer = models.load_tokenizer(source, None, cache_dir)
    model = models.load_model(
        models.SequenceClassifier, source, config, seed=0, cache_dir=cache_dir
    )
    mask = masks.load(
        mask_file, {name: module.weight.shape for name, module in masks.prunable(model).items()}
    )
    masks.attach(model, mask)
    told = mask_file / ticket_format.PACKED_MASK if mask_file.is_dir() else mask_file
    info = (models.read_info(told) or {}) | {
        "sparsity": masks.sparsity(mask),
        "mask_sha256": masks.digest(mask),
    }
    model.bert.saved_as = "BertModel"  # the encoder alone: a ticket has no head
    with files.folder_written_whole(out) as folder:
        packed = folder / ticket_format.PACKED_MASK
        models.save_pretrained(model.bert, tokenizer, folder)
        ticket_format.pack_mask(mask, packed)
        files.write_json(masks.info_path(packed), info)
        files.write_text(
            folder / "README.md", card(info, out.name, source, masks.sparsity(mask), len(mask))
        )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "mask", type=Path, help="mask file, such as checkpoint-STEP/mask.pt of an IMP run"
    )
    parser.add_argument("--model", required=True, help="hub name or local folder of theta_0")
    parser.add_argument(
        "--cache_dir", help="folder for downloaded models, instead of the default place"
    )
    parser.add_argument("out", type=Path, help="folder to write; must not be there yet")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Export and say where to."""
    args = parse(argv)
    export(args.mask, args.model, args.out, args.cache_dir)
    print(f"{args.out}: {', '.join(sorted(entry.name for entry in args.out.iterdir()))}")


if __name__ == "__main__":
    cli.run(main)
