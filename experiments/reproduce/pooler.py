"""Join the encoder of one mask and the pooler of another, to see which of them makes a ticket."""

from dataclasses import replace
from pathlib import Path

from experiments import geometry
from utils import cli
from utils.errors import UserError
from utils.pruning import mask_files
from utils.pruning.origin import read_origin


def main() -> None:
    """Write the joined mask and its origin: that of IMP's mask, with both methods."""
    parser = cli.OneLineParser(__doc__)
    parser.add_argument("encoder", type=Path, help="mask that gives the encoder")
    parser.add_argument("pooler", type=Path, help="mask that gives the pooler")
    parser.add_argument("--output", type=Path, required=True, help="mask file to write")
    args = parser.parse_args()
    paths = args.encoder, args.pooler
    encoder, pooler = map(mask_files.load, paths)
    one, other = ({key: tuple(keep.shape) for key, keep in m.items()} for m in (encoder, pooler))
    geometry.check_shapes(one, other, paths)
    origins = {origin.method: origin for path in paths if (origin := read_origin(path))}
    if origins.keys() != {"imp", "omp"} or origins["omp"].weight == "rand":
        what = " and ".join(map(str, paths))
        raise UserError(f"{what} are not a mask of IMP and a one-shot mask of theta_0")
    joined = {key: (pooler if "pooler" in key else encoder)[key] for key in encoder}
    origin = replace(origins["imp"], method="+".join(map(str, origins)))
    mask_files.save(joined, args.output, origin)


if __name__ == "__main__":
    cli.run(main)
