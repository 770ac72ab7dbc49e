"""The reference outputs in the repository: complete, and equal to those in the shared folder."""

import numpy as np
import pytest
import torch
from conftest import SHARED
from golden_archive import ARCHIVE, LEFT_OUT, MODEL
from reference_runs import OWN

SIZE = 2_000_000  # bytes of the archive that the repository carries
FULL = SHARED / "golden"


def names(folder):
    """Every file below a folder, but the caches."""
    found = {path for path in folder.rglob("*") if path.is_file()}
    return {str(path.relative_to(folder)) for path in found - set(folder.rglob(LEFT_OUT))}


def test_the_archive_is_small_and_has_every_kind_of_output():
    assert ARCHIVE.stat().st_size <= SIZE
    kinds = ("glue_features.json", "squad/features_*.json", "squad/eval_*/*.json", "omp/*.npz")
    kinds += ("imp/*/mask_??.npz", "finetune/*/run.json", f"assets/model/{MODEL}")
    assert [kind for kind in kinds if not list(OWN.glob(kind))] == []


@pytest.mark.skipif(not FULL.is_dir(), reason=f"{FULL} is not on this machine")
def test_the_archive_holds_what_the_shared_folder_holds():
    assert names(OWN) == names(FULL)
    for name in names(FULL):
        ours, theirs = OWN / name, FULL / name
        if ours.name == MODEL:
            found, expected = (torch.load(path, weights_only=True) for path in (ours, theirs))
            assert list(found) == list(expected)
            assert [key for key in found if not torch.equal(found[key], expected[key])] == []
        elif ours.suffix == ".npz":
            found, expected = np.load(ours), np.load(theirs)
            assert set(found.files) == set(expected.files), name
            for key in found.files:
                assert found[key].dtype == expected[key].dtype, (name, key)
                assert np.array_equal(found[key], expected[key]), (name, key)
        else:
            assert ours.read_bytes() == theirs.read_bytes(), name
