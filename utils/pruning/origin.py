"""Where a mask or a set of perturbed weights comes from: the JSON file beside it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import files


@dataclass(frozen=True)
class Origin:
    """How a mask (`method`) or a set of weights (`mode`) was made; fields may not apply (None)."""

    method: str | None = None  # "imp", "omp" or "random"
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

    @classmethod
    def from_json(cls, content: Any) -> "Origin | None":
        """Return the origin in a JSON object, ignoring unknown keys; None if it is no object."""
        if not isinstance(content, dict):
            return None
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in content.items() if key in names})

    def to_json(self) -> dict[str, Any]:
        """Return the fields that apply, and the task of every mask: null if no task was used."""
        task = {"task": self.task} if self.method else {}
        return task | {k: v for k, v in dataclasses.asdict(self).items() if v is not None}


def read_origin(path: Path) -> Origin | None:
    """Return the origin beside a mask or weight file or in an exported folder, if any."""
    path = path / files.PACKED_MASK if path.is_dir() else path
    return Origin.from_json(files.read_json(files.origin_path(path)))


def write_origin(path: Path, origin: Origin) -> None:
    """Write `origin` beside the mask or weight file `path`, whole or not at all."""
    files.write_json(files.origin_path(path), origin.to_json())
