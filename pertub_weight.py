"""Perturb pre-trained BERT weights (theta_0'' of Table 2): permute them or add noise."""

from dataclasses import dataclass
from pathlib import Path

from utils import cli
from utils.config import ModelConfig, flag
from utils.errors import UserError


@dataclass(frozen=True)
class Config:
    """The flags of this script."""

    model: ModelConfig
    mode: str = flag(
        "layers",
        "layers: the six matrices of a layer move together to another layer, as in the released "
        "code; elements: the entries of each matrix are permuted; noise: Gaussian noise is added",
        choices=["layers", "elements", "noise"],
    )
    sigma: float = flag(0.02, "--mode noise: its standard deviation (ours)", bounds="> 0")
    seed: int = flag(42, "seed of the draw (ours: 42)", bounds=f">= 0, < {2**63}")
    output: str | None = flag(
        None,
        "file to write, to give to --weight_pertub; left out, tmp/shuffle_weight.pt, or with "
        "another mode or seed tmp/MODE_weight_seedSEED.pt (ours)",
    )
    overwrite: bool = flag(False, "replace a file that differs (ours)")


def main() -> None:
    """Write the perturbed matrices and their origin."""
    config = cli.parse(Config, __doc__)
    with cli.imports_without_gc():
        from utils.modeling import bert, saving
        from utils.pruning import perturbation
        from utils.pruning.origin import Origin

    source, cache_dir = config.model.model_name_or_path, config.model.cache_dir

    bert_config = bert.load_config(config.model.config_source, cache_dir)
    model = bert.load_model(
        bert.SequenceClassifier, source, bert_config, config.seed, cache_dir=cache_dir
    )
    weights = perturbation.perturb(model, config.mode, config.seed, config.sigma)

    sigma = config.sigma if config.mode == "noise" else None
    origin = Origin(mode=config.mode, seed=config.seed, model=source, sigma=sigma)
    name = f"{config.mode}{sigma or ''}_weight_seed{config.seed}"
    name = "shuffle_weight" if name == "layers_weight_seed42" else name  # as in released commands
    path = Path(config.output or f"tmp/{name}.pt")
    if source and Path(source).resolve() in (path.resolve(), path.resolve().parent):
        raise UserError(f"--output {path}: in {source}, the model that is read; give another path")
    saving.save_weights(weights, path, origin, config.overwrite)
    mode = perturbation.MODES[config.mode]
    print(f"{path}: {len(weights)} weight matrices of {source}, {mode}")


if __name__ == "__main__":
    cli.run(main)
