"""Make a mask in one shot: magnitude pruning of BERT's weights as they are (OMP), or a random mask (m_RP of Table 2)."""

from pathlib import Path

from utils import cli, files, masks, models
from utils.errors import UserError

MODELS = {
    "glue": models.SequenceClassifier,
    "squad": models.QuestionAnswerer,
    "pretrain": models.MaskedLanguageModel,
}


def parse_args():
    """The command line."""
    parser = cli.OneLineParser(description=__doc__)
    add = parser.add_argument
    add(
        "--weight",
        required=True,
        choices=["pre", "rand"],
        help="rank the pre-trained weights, or those that --dir rand with the same --seed trains",
    )
    add(
        "--model",
        required=True,
        choices=list(MODELS),
        help="the task model; all three share the encoder, so its mask",
    )
    add("--rate", type=float, required=True, help="sparsity of the mask, from 0 to below 1")
    add(
        "--method",
        choices=["magnitude", "random"],
        default="magnitude",
        help="drop the smallest weights of all matrices together, or random ones",
    )
    add(
        "--seed",
        type=int,
        default=42,
        help="seed of --weight rand and of --method random (ours: 42)",
    )
    cli.add_model_flags(parser)
    add(
        "--output_dir",
        default=None,
        help="folder for mask.pt; left out, tmp/oneshot/WEIGHT_MODEL_RATE (ours)",
    )
    args = parser.parse_args()
    cli.check_seed(args.seed)
    if not 0 <= args.rate < 1:
        raise UserError(f"--rate {args.rate} must be at least 0 and below 1")
    return args


def main():
    args = parse_args()

    config = models.load_config(args.config_name or args.model_name_or_path, args.cache_dir)
    model = models.load_model(
        MODELS[args.model], args.model_name_or_path, config, args.seed, args.weight, args.cache_dir
    )
    values = masks.weights(model)
    if args.method == "random":
        mask = masks.random(
            {name: value.shape for name, value in values.items()}, args.rate, args.seed
        )
    else:
        mask = masks.magnitude(values, args.rate)

    folder = Path(args.output_dir or f"tmp/oneshot/{args.weight}_{args.model}_{args.rate}")
    info = {
        "method": "omp" if args.method == "magnitude" else "random",
        "task": None,
        "seed": args.seed,
        "weight": args.weight,
        "model": args.model_name_or_path,
    }
    masks.save(mask, folder / files.MASK, info)
    kept = sum(int(m.sum()) for m in mask.values())
    total = sum(m.numel() for m in mask.values())
    print(
        f"{folder / files.MASK}: {args.method} mask of {len(mask)} matrices, "
        f"{total - kept:,} of {total:,} weights dropped, sparsity {masks.sparsity(mask):.2%}"
    )


if __name__ == "__main__":
    cli.run(main)
