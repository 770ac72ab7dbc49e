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


def collect(runs: Path, study: Path, add: bool = False) -> None:
    """Replace `study` by copies from the finished runs below `runs`, each in its own folder.

    Masks are replaced by their overlaps, at the sparsities of trainings. With `add`, `study` keeps
    the runs and overlaps of masks that are not below `runs`. Raises UserError if no run is
    finished, `study` holds other files, or a mask differs from that of `study`.
    """
    if study.resolve().is_relative_to(runs.resolve()):
        raise UserError(f"{study}: inside {runs}; give a folder outside of the runs")
    for path in (study, *study.rglob("*")):
        collected = path != study and any(map(path.match, (*COPIED, files.OVERLAPS)))
        if path.is_file() and not collected:
            raise UserError(f"{path}: not a collected file; move it, or give another study")
    notices: list[str] = []
    finished = _finished(runs, notices)
    if not finished:
        raise UserError(f"{runs}: no finished run below it; give the folder of the output folders")
    lines = [path.parent for path in sorted(runs.rglob(files.CONNECTIVITY))]
    masks = overlap.find(runs, False, notices)
    earlier = overlap.find(study, False, notices) if add else []
    with files.atomic_folder(study) as temporary:
        if add and study.is_dir():
            shutil.copytree(study, temporary, dirs_exist_ok=True)
        for folder in dict.fromkeys([*finished, *lines]):
            copy = temporary / folder.relative_to(runs)
            copy.mkdir(parents=True, exist_ok=True)
            for path in _collected(copy):
                path.unlink()
            for path in _collected(folder):
                shutil.copyfile(path, copy / path.name)
        rows = results.read(temporary).rows
        trained = set(rows["percent"][rows["method"] == "train"])
        masks = [mask for mask in masks if mask.percent in trained]
        overlap.store(overlap.join(masks, earlier), temporary / files.OVERLAPS)
    for notice in notices:
        files.warn(notice)
    print(f"{len(finished)} finished runs copied to {study}")


def _collected(folder: Path) -> list[Path]:
    return [path for name in COPIED for path in folder.glob(name)]


def _finished(runs: Path, notices: list[str]) -> list[Path]:
    """Return the folders of finished runs, with a notice for each other one."""
    finished = []
    for path in sorted(runs.rglob(files.RESULTS)):
        owner = read_owner(path.parent)
        if owner and owner.finished and not files.moved_aside(path, runs):
            finished.append(path.parent)
        else:
            notices.append(f"{path.parent}: unfinished, or moved aside by another run; left out")
    return finished


def main(argv: list[str] | None = None) -> None:
    """Collect the runs of a study."""
    parser = cli.OneLineParser(__doc__)
    parser.add_argument("runs", type=Path, help="folder below which the runs are")
    parser.add_argument("study", type=Path, help="folder to replace, such as docs/results/glue")
    text = "keep what the study has of runs that are gone"
    parser.add_argument("--add", action="store_true", help=text)
    args = parser.parse_args(argv)
    collect(args.runs, args.study, args.add)


if __name__ == "__main__":
    cli.run(main)
