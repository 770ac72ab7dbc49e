"""A joined mask has the encoder of one mask and the pooler of another."""

import subprocess
import sys

import torch
from launch import ROOT
from results_tree import OMP_INFO, mask_info, save_mask, small_mask

from utils.pruning import mask_files
from utils.pruning.origin import read_origin


def join(*words) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "experiments.reproduce.pooler", *map(str, words)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_encoder_of_one_mask_and_the_pooler_of_another(tmp_path):
    omp, imp = small_mask(0.5, 1), small_mask(0.5, 2)
    save_mask(tmp_path / "omp", omp, OMP_INFO)
    save_mask(tmp_path / "imp", imp, mask_info("rte", 0.5, 2))
    files = [tmp_path / name / "mask.pt" for name in ("omp", "imp", "joined")]
    done = join(*files[:2], "--output", files[2])
    assert done.returncode == 0, done.stderr
    joined, origin = mask_files.load(files[2]), read_origin(files[2])
    assert joined.keys() == omp.keys()
    for key, keep in joined.items():
        assert torch.equal(keep, (imp if key.startswith("bert.pooler") else omp)[key])
    assert (origin.method, origin.task, origin.seed) == ("omp+imp", "rte", 2)
    done = join(files[0], files[0], "--output", tmp_path / "other.pt")
    assert done.returncode == 2 and "not a mask of IMP" in done.stderr
    save_mask(tmp_path / "wide", small_mask(0.5, 2, side=24), mask_info("rte", 0.5, 2))
    done = join(files[0], tmp_path / "wide" / "mask.pt", "--output", tmp_path / "other.pt")
    assert done.returncode == 2 and "different architectures" in done.stderr
    assert not (tmp_path / "other.pt").exists()
