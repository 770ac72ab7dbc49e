"""Where a mask or a set of perturbed weights comes from: the JSON file beside it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import files, schema
from utils.errors import UserError


@dataclass(frozen=True)
class Origin:
    """How a mask (`method`) or a set of weights (`mode`) was made; fields may not apply (None)."""

    method: str | None = None  # "imp", "omp", "random", "layerwise", "shuffled"; joined: "omp+imp"
    mode: str | None = None  # of weights: "layers", "elements", "noise", or "rewound" (theta_i)
    task: str | None = None  # on which IMP found it
    seed: int | None = None
    model: str | None = None  # theta_0
    weight: str | None = None  # weights that a one-shot mask ranks: "pre" or "rand"
    sigma: float | None = None  # of mode "noise"
    rewind: str | None = None  # "theta_i", "encoder" (as released) or "none" (standard pruning)
    rewind_steps: int | None = None  # i
    rewind_fraction: float | None = None  # i as a fraction of a round
    as_released: bool | None = None
    sparsity: float | None = None
    mask_sha256: str | None = None
    shuffled_from: str | None = None  # sha256 of the mask that a shuffled one permutes

    def to_json(self) -> dict[str, Any]:
        """Return the fields that apply, and the task of every mask: null if no task was used."""
        task = {"task": self.task} if self.method else {}
        return task | {k: v for k, v in dataclasses.asdict(self).items() if v is not None}


def read_origin(path: Path, digest: str | None = None) -> Origin | None:
    """Return the origin beside a mask or weight file or in an exported folder, None without one.

    Warns and returns None if it is corrupt, or if it describes another mask than that of `digest`.
    """
    path = files.origin_path(path / files.PACKED_MASK if path.is_dir() else path)
    try:
        origin = schema.read(path, Origin)
    except UserError as error:
        files.warn(f"{error}; the origin is unknown")
        return None
    if origin and digest and origin.mask_sha256 not in (None, digest):
        files.warn(f"{path}: describes another mask than the one beside it; its origin is unknown")
        return None
    return origin


def write_origin(path: Path, origin: Origin) -> None:
    """Write `origin` beside the mask or weight file `path`, whole or not at all."""
    files.write_json(files.origin_path(path), origin.to_json())
