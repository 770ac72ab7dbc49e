"""Perturb pre-trained BERT weights (theta_0'' of Table 2): permute layers or the elements of matrices, or add noise."""

from pathlib import Path

from utils import cli, models, perturbation
from utils.errors import UserError


def parse_args():
    """The command line."""
    parser = cli.OneLineParser(description=__doc__)
    add = parser.add_argument
    add(
        "--mode",
        choices=list(perturbation.MODES),
        default="layers",
        help="layers: the six matrices of a layer move together to another layer, as the released code does; "
        "elements: the entries of each matrix are permuted within it; noise: Gaussian noise is added",
    )
    add(
        "--sigma",
        type=float,
        default=0.02,
        help="--mode noise: standard deviation of the noise (ours)",
    )
    add("--seed", type=int, default=42, help="seed of the permutation or the noise (ours: 42)")
    cli.add_model_flags(parser)
    add(
        "--output",
        default="tmp/shuffle_weight.pt",
        help="file to write, as --weight_pertub reads it",
    )
    args = parser.parse_args()
    cli.check_seed(args.seed)
    if not 0 < args.sigma < float("inf"):
        raise UserError(f"--sigma {args.sigma} must be a number above 0")
    return args


def main():
    args = parse_args()

    config = models.load_config(args.config_name or args.model_name_or_path, args.cache_dir)
    source = args.model_name_or_path
    model = models.load_model(
        models.SequenceClassifier, source, config, args.seed, cache_dir=args.cache_dir
    )
    weights = perturbation.perturb(model, args.mode, args.seed, args.sigma)

    info = {"mode": args.mode, "seed": args.seed, "model": args.model_name_or_path}
    if args.mode == "noise":
        info["sigma"] = args.sigma
    models.save_weights(weights, Path(args.output), info)
    print(
        f"{args.output}: {len(weights)} weight matrices of {args.model_name_or_path}, {perturbation.MODES[args.mode]}"
    )


if __name__ == "__main__":
    cli.run(main)
