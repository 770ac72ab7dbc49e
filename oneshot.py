"""Make a mask in one shot: magnitude pruning of BERT's weights (OMP), or a random mask (m_RP)."""

from dataclasses import dataclass
from pathlib import Path

from utils import cli, files
from utils.config import ModelConfig, flag

METHODS = {"magnitude": "omp", "random": "random"}  # --method -> method of the mask's origin


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
    rate: float = flag(..., "sparsity of the mask, from 0 to below 1", bounds=">= 0, < 1")
    method: str = flag(
        "magnitude",
        "drop the smallest weights over all matrices, or random weights",
        choices=list(METHODS),
    )
    seed: int = flag(
        42, "seed of --weight rand and of --method random (ours: 42)", bounds=f">= 0, < {2**63}"
    )
    output_dir: str | None = flag(
        None,
        "folder for mask.pt; left out, tmp/oneshot/WEIGHT_MODEL_RATE, with _random for --method "
        "random, and with _seedSEED if the mask depends on the seed (ours)",
    )
    overwrite: bool = flag(False, "replace a file with another content (ours)")


def main() -> None:
    """Write the mask and its origin, and print what it drops."""
    config = cli.parse(Config, __doc__)
    with cli.imports_without_gc():
        from utils.modeling import bert
        from utils.pruning import criteria, mask_files, masks
        from utils.pruning.origin import Origin

    source, cache_dir = config.base.model_name_or_path, config.base.cache_dir

    bert_config = bert.load_config(config.base.config_source, cache_dir)
    model = bert.load_model(
        bert.SequenceClassifier, source, bert_config, config.seed, config.weight, cache_dir
    )

    if config.method == "random":
        mask = criteria.random(masks.shapes(model), config.rate, config.seed)
    else:
        mask = criteria.magnitude(masks.weights(model), config.rate)

    name = f"{config.weight}_{config.model}_{config.rate}"
    name += "_random" if config.method == "random" else ""
    name += f"_seed{config.seed}" if "rand" in name else ""  # it is drawn
    path = Path(config.output_dir or f"tmp/oneshot/{name}") / files.MASK
    method, seed = METHODS[config.method], config.seed
    origin = Origin(method=method, seed=seed, weight=config.weight, model=source)
    mask_files.save(mask, path, origin, config.overwrite)
    total = sum(keep.numel() for keep in mask.values())
    dropped = total - sum(int(keep.sum()) for keep in mask.values())
    print(
        f"{path}: {config.method} mask of {len(mask)} matrices, {dropped:,} of {total:,} weights "
        f"dropped, sparsity {masks.sparsity(mask):.2%}"
    )


if __name__ == "__main__":
    cli.run(main)
