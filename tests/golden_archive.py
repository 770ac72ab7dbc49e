"""The reference outputs in tests/golden: one archive, unpacked into a temporary folder.

python tests/golden_archive.py FOLDER packs a folder of reference outputs. Two kinds of files are
stored in a smaller form:

- masks, which are nested: for each weight, how many of a folder's masks keep it;
- the weights of the model, which its authors drew from a seed: the draw in float64 repeated, and
  by how many ulps float32 differs from it.
"""

import atexit
import hashlib
import io
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch

ARCHIVE = Path(__file__).parent / "golden" / "reference.tar.xz"
MODEL, NESTED, WEIGHTS = "pytorch_model.bin", "nested_masks.npz", "weights.npz"
MASKS = ("imp/*/mask_*.npz", "omp/*.npz")
LEFT_OUT = "cached_*"  # a feature cache of the released code
SEED, EARLIER_DRAWS = 20200723, 1313666  # those of the constructors, which initialization replaces
TIED = "cls.predictions.decoder.weight"  # with the word embeddings


def unpack() -> Path:
    """Unpack the archive into a temporary folder, which is removed at exit."""
    folder = Path(tempfile.mkdtemp(prefix="lth-golden-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    for path in folder.rglob(NESTED):
        unpack_masks(path)
    for path in folder.rglob(WEIGHTS):
        unpack_weights(path)
    return folder


def pack(source: Path) -> None:
    """Write ARCHIVE from a folder of reference outputs."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "golden"
        ignored = shutil.ignore_patterns(LEFT_OUT)
        shutil.copytree(source, folder, ignore=ignored, copy_function=shutil.copyfile)
        masks = [path for pattern in MASKS for path in folder.glob(pattern)]
        for parent in {path.parent for path in masks}:
            parent.chmod(0o755)
            pack_masks([path for path in masks if path.parent == parent])
        for path in folder.rglob(MODEL):
            path.parent.chmod(0o755)
            pack_weights(path)
        with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                entry = tarfile.TarInfo(str(path.relative_to(folder)))
                entry.size = path.stat().st_size
                archive.addfile(entry, io.BytesIO(path.read_bytes()))


# ---- nested masks: `packbits` of each flattened matrix, with its shape


def pack_masks(paths: list[Path]) -> None:
    """Replace the mask files of a folder by NESTED. Raises ValueError if they are not nested."""
    masks = {path.name: read_bits(path) for path in paths}
    kept = {name: sum(int(bits.sum()) for bits in mask.values()) for name, mask in masks.items()}
    names = sorted(masks, key=lambda name: (-kept[name], name))
    counts = {key: np.sum([masks[n][key] for n in names], axis=0) for key in masks[names[0]]}
    for number, name in enumerate(names):
        for key, count in counts.items():
            if not np.array_equal(masks[name][key], count > number):
                raise ValueError(f"{name}: {key} is not nested in the masks before")
    small = {key: count.astype(np.uint8) for key, count in counts.items()}
    np.savez(paths[0].parent / NESTED, **small, files=np.array(names))
    for path in paths:
        path.unlink()


def unpack_masks(path: Path) -> None:
    """The inverse of `pack_masks`."""
    counts = dict(np.load(path))
    for number, name in enumerate(counts.pop("files").tolist()):
        arrays = {}
        for key, count in counts.items():
            arrays[key] = np.packbits((count > number).ravel())
            arrays[f"{key}.shape"] = np.array(count.shape)
        np.savez_compressed(path.parent / name, **arrays)
    path.unlink()


def read_bits(path: Path) -> dict[str, np.ndarray]:
    """A mask file as bool arrays."""
    stored = np.load(path)
    shapes = {key: stored[f"{key}.shape"] for key in stored.files if f"{key}.shape" in stored}
    return {
        key: np.unpackbits(stored[key])[: np.prod(shape)].astype(bool).reshape(shape)
        for key, shape in shapes.items()
    }


# ---- the weights of the model


def initial_values(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The initialization by the 2020 code: N(0, 0.02) by Box and Muller's method, as torch has it.

    In float64, rounded to float32: torch's own logarithm and cosine differ between CPUs.
    """
    generator, values = np.random.RandomState(SEED), {}
    generator.randint(0, 1 << 32, size=EARLIER_DRAWS, dtype=np.uint32)
    for name, shape in shapes.items():
        constant = np.ones if name.endswith("LayerNorm.weight") else np.zeros
        values[name] = constant(shape, np.float32)
        if len(shape) == 2:
            bits = generator.randint(0, 1 << 32, size=values[name].size, dtype=np.uint32)
            uniform = ((bits & 0xFFFFFF) / (1 << 24)).reshape(-1, 2, 8)
            radius = np.sqrt(-2 * np.log(1 - uniform[:, 0]))
            angle = 2 * np.pi * uniform[:, 1]
            normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
            values[name] = (0.02 * normal).astype(np.float32).reshape(shape)
    return values


def pack_weights(path: Path) -> None:
    """Replace the weights in `path` by their distances from the draw, and add their digest."""
    weights = {name: value.numpy() for name, value in torch.load(path, weights_only=True).items()}
    drawn = initial_values({name: value.shape for name, value in weights.items()})
    apart = {
        name: value.view(np.int32) - drawn[name].view(np.int32) for name, value in weights.items()
    }
    apart[TIED] = np.zeros_like(apart[TIED])
    np.savez(path.with_name(WEIGHTS), **apart, sha256=np.array(digest(weights)))
    path.unlink()


def unpack_weights(path: Path) -> None:
    """The inverse of `pack_weights`. Raises ValueError if the weights are not those packed."""
    apart = dict(np.load(path))
    expected = str(apart.pop("sha256"))
    weights = initial_values({name: value.shape for name, value in apart.items()})
    for name, value in apart.items():
        weights[name] = (weights[name].view(np.int32) + value).view(np.float32)
    weights[TIED] = weights["bert.embeddings.word_embeddings.weight"]
    if digest(weights) != expected:
        raise ValueError(f"{ARCHIVE}: this machine computes other weights than were packed")
    torch.save({name: torch.from_numpy(v) for name, v in weights.items()}, path.with_name(MODEL))
    path.unlink()


def digest(weights: dict[str, np.ndarray]) -> str:
    """sha256 of all values."""
    sha256 = hashlib.sha256()
    for name in sorted(weights):
        sha256.update(name.encode() + weights[name].tobytes())
    return sha256.hexdigest()


if __name__ == "__main__":
    pack(Path(sys.argv[1]))
