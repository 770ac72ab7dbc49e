"""Small trees of results rows and masks, as runs write them, for tests of tables and figures."""

import json
from pathlib import Path

import torch

from utils.pruning import criteria, mask_files
from utils.pruning.criteria import Mask
from utils.pruning.origin import Origin

OMP_INFO = {"method": "omp", "task": None, "seed": 42, "weight": "pre"}


def mask_info(
    task: str | None,
    sparsity: float,
    seed: int,
    method: str = "imp",
    fraction: float = 0.0,
    rewind: str = "theta_i",
) -> dict:
    """Return the origin of a mask as JSON, as in the file beside it and in the rows."""
    return {
        "method": method,
        "task": task,
        "sparsity": sparsity,
        "seed": seed,
        "rewind": rewind,
        "rewind_steps": round(100 * fraction),
        "rewind_fraction": fraction,
        "as_released": False,
    }


def row(
    task: str,
    score: float,
    seed: int,
    mask: dict | None = None,
    method: str = "train",
    *,
    init: str = "pre",
    init_info: dict | None = None,
    final: bool = True,
    **changes,
) -> dict:
    """Return one row of results.jsonl."""
    described = {"sparsity": 0.0, "mask": None, "mask_info": None, "mask_sha256": None}
    if mask:
        described = {
            "sparsity": mask["sparsity"],
            "mask": "m.pt",
            "mask_info": mask,
            "mask_sha256": "0",
        }
    rest = {
        "script": "glue_trans.py",
        "step": 1,
        "round": None,
        "metrics": {},
        "args": {},
        "versions": {},
        "device": "cpu",
        "wall_seconds": 1.0,
    }
    return (
        {
            "task": task,
            "method": method,
            "init": init,
            "init_info": init_info,
            "seed": seed,
            "final": final,
            "score": score,
        }
        | described
        | rest
        | changes
    )


def write_rows(folder: Path, rows: list[dict], tail: str = "", name: str = "results.jsonl") -> Path:
    """Write `rows` to a file of the folder, and `tail` after them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("".join(json.dumps(r) + "\n" for r in rows) + tail, encoding="utf-8")
    return path


def trainings(task: str, scores: list[float], mask=None, **more) -> list[dict]:
    """Return one row per score: trainings with the seeds 1, 2, ... and the masks `mask(seed)`."""
    return [
        row(task, score, seed, mask(seed) if mask else None, **more)
        for seed, score in enumerate(scores, 1)
    ]


def small_mask(sparsity: float, seed: int, layers: int = 2, side: int = 20) -> Mask:
    """Return a random mask over the matrices of a small BERT."""
    parts = (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
    names = [f"bert.encoder.layer.{n}.{part}" for n in range(layers) for part in parts] + [
        "bert.pooler.dense"
    ]
    return criteria.random({name: torch.Size((side, side)) for name in names}, sparsity, seed)


def save_mask(folder: Path, mask: Mask, info: dict) -> None:
    """Save `mask` as folder/mask.pt, with its origin beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    mask_files.save(mask, folder / "mask.pt", Origin(**info))
