"""Make a mask in one shot: magnitude pruning of BERT's weights (OMP), or a control.

Controls: a random mask (m_RP), magnitude pruning within each matrix, or a shuffled mask (ours; Su
et al. 2020, Frankle et al. 2021: is a ticket more than its layer-wise sparsities?).
"""

from dataclasses import dataclass, replace
from pathlib import Path

from utils import cli, files
from utils.config import ModelConfig, flag
from utils.errors import UserError

METHODS = {  # --method, a function in utils/pruning/criteria.py -> method of the mask's origin
    "magnitude": "omp",
    "random": "random",
    "layerwise": "layerwise",
    "shuffle": "shuffled",
}


@dataclass(frozen=True)
class Config:
    """The flags of this script."""

    base: ModelConfig
    weight: str = flag(
        ...,
        "rank pre-trained weights, or those that --dir rand with this --seed trains",
        choices=["pre", "rand"],
    )
    model: str = flag(
        ...,
        "the task model; all three share the encoder and so the mask",
        choices=["glue", "squad", "pretrain"],
    )
    rate: float | None = flag(
        None,
        "sparsity of the mask, from 0 to below 1; --method shuffle keeps that of --mask_dir",
        bounds=">= 0, < 1",
    )
    method: str = flag(
        "magnitude",
        "magnitude: drop the smallest weights of all matrices together; random: random weights; "
        "layerwise: the smallest of each matrix (ours); shuffle: permute --mask_dir within each "
        "matrix (ours)",
        choices=list(METHODS),
    )
    mask_dir: str | None = flag(None, "mask file (or exported ticket) to shuffle (ours)")
    seed: int = flag(
        42,
        "seed of --weight rand, --method random and shuffle (ours: 42)",
        bounds=f">= 0, < {2**63}",
    )
    output_dir: str | None = flag(
        None,
        "folder for mask.pt; left out, tmp/oneshot/WEIGHT_MODEL_RATE, followed by the method if it "
        "is not magnitude, and by _seedSEED if the mask depends on the seed (ours)",
    )
    overwrite: bool = flag(False, "replace a file that differs (ours)")

    def __post_init__(self) -> None:
        needed, unused = ("mask_dir", "rate") if self.method == "shuffle" else ("rate", "mask_dir")
        if getattr(self, needed) is None or getattr(self, unused) is not None:
            raise UserError(f"--method {self.method} needs --{needed} and does not use --{unused}")


def main() -> None:
    """Write the mask and its origin, and print what it drops."""
    config = cli.parse(Config, __doc__)
    with cli.imports_without_gc():
        from utils import finetune
        from utils.modeling import bert
        from utils.pruning import criteria, mask_files, masks
        from utils.pruning.origin import Origin

    source, cache_dir = config.base.model_name_or_path, config.base.cache_dir

    bert_config = bert.load_config(config.base.config_source, cache_dir)
    model = bert.load_model(
        bert.SequenceClassifier, source, bert_config, config.seed, config.weight, cache_dir
    )

    seed, rate = config.seed, config.rate or 0.0  # shuffle: no rate
    origin = Origin(seed=seed, weight=config.weight, model=source)
    if config.method == "shuffle":
        given = finetune.attach_mask(model, config.mask_dir)
        mask = criteria.shuffle(masks.current(model), seed)
        origin = replace(given.origin or Origin(), seed=seed, shuffled_from=given.sha256)
    elif config.method == "random":
        mask = criteria.random(masks.shapes(model), rate, seed)
    else:  # a criterion of that name
        mask = getattr(criteria, config.method)(masks.weights(model), rate, None)

    name = f"{config.weight}_{config.model}_{config.rate or round(masks.sparsity(mask), 4)}"
    name += "" if config.method == "magnitude" else f"_{config.method}"
    drawn = config.weight == "rand" or config.method in ("random", "shuffle")
    name += f"_seed{config.seed}" if drawn else ""
    path = Path(config.output_dir or f"tmp/oneshot/{name}") / files.MASK
    origin = replace(origin, method=METHODS[config.method])
    mask_files.save(mask, path, origin, config.overwrite)
    total = sum(keep.numel() for keep in mask.values())
    dropped = total - sum(int(keep.sum()) for keep in mask.values())
    print(
        f"{path}: {config.method} mask of {len(mask)} matrices, {dropped:,} of {total:,} weights "
        f"dropped, sparsity {masks.sparsity(mask):.2%}"
    )


if __name__ == "__main__":
    cli.run(main)
