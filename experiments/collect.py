"""Copy result rows, predictions, mask overlaps and connectivity of finished runs to a study."""

if __name__ == "__main__":
    import _root  # noqa: F401

import shutil
from pathlib import Path

from experiments import overlap, results
from utils import cli, files
from utils.errors import UserError
from utils.runs.records import read_owner

COPIED = (files.RESULTS, files.TICKETS, files.CONNECTIVITY, "predictions_*.npz")


def collect(runs: Path, study: Path) -> None:
    """Replace `study` by copies from the finished runs below `runs`, each in its own folder.

    Masks are replaced by their overlaps, at the sparsities of trainings. Raises UserError if no
    run is finished, or `study` holds other files.
    """
    if study.resolve().is_relative_to(runs.resolve()):
        raise UserError(f"{study}: inside {runs}; give a folder outside of the runs")
    for path in (study, *study.rglob("*")):
        collected = path != study and any(map(path.match, (*COPIED, files.OVERLAPS)))
        if path.is_file() and not collected:
            raise UserError(f"{path}: not a collected file; move it, or give another study")
    finished, notices = [], []
    for path in sorted(runs.rglob(files.RESULTS)):
        owner = read_owner(path.parent)
        if owner and owner.finished and not files.moved_aside(path, runs):
            finished.append(path.parent)
        else:
            notices.append(f"{path.parent}: unfinished, or moved aside by another run; left out")
    if not finished:
        raise UserError(f"{runs}: no finished run below it; give the folder of the output folders")
    lines = [path.parent for path in sorted(runs.rglob(files.CONNECTIVITY))]
    masks = overlap.find(runs, False, notices)
    with files.atomic_folder(study) as temporary:
        for folder in [*finished, *lines]:
            copy = temporary / folder.relative_to(runs)
            copy.mkdir(parents=True, exist_ok=True)
            for path in (path for name in COPIED for path in folder.glob(name)):
                shutil.copyfile(path, copy / path.name)
        rows = results.read(temporary).rows
        trained = set(rows["percent"][rows["method"] == "train"])
        overlap.store([m for m in masks if m.percent in trained], temporary / files.OVERLAPS)
    for notice in notices:
        files.warn(notice)
    print(f"{len(finished)} finished runs copied to {study}")


def main(argv: list[str] | None = None) -> None:
    """Collect the runs of a study."""
    parser = cli.OneLineParser(__doc__)
    parser.add_argument("runs", type=Path, help="folder below which the runs are")
    parser.add_argument("study", type=Path, help="folder to replace, such as docs/results/glue")
    args = parser.parse_args(argv)
    collect(args.runs, args.study)


if __name__ == "__main__":
    cli.run(main)
