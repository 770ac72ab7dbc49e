"""Mask files: written whole with their origin, read without running code, and checked."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from small_models import QUERY, equal, tiny_model

from utils import files
from utils.errors import UserError
from utils.modeling.saving import load_initial_weights
from utils.pruning import criteria, mask_files, masks
from utils.pruning.origin import Origin, read_origin


@pytest.fixture
def shapes():
    return masks.shapes(tiny_model())


@pytest.fixture
def mask(shapes):
    return criteria.random(shapes, 0.5, seed=1)


def saved(tmp_path, content, name="mask.pt"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def test_a_mask_is_saved_as_bool_with_its_origin_beside_it_and_loads_again(tmp_path, mask, shapes):
    sha256 = mask_files.save(
        {key: m.float() for key, m in mask.items()},
        tmp_path / "deep" / "mask.pt",
        Origin(method="random"),
    )
    written = torch.load(tmp_path / "deep" / "mask.pt", weights_only=True)
    assert equal(written, mask) and all(m.dtype == torch.bool for m in written.values())
    origin = {"method": "random", "task": None, "mask_sha256": sha256}
    origin["sparsity"] = round(masks.sparsity(mask), 9)
    assert json.loads((tmp_path / "deep" / "mask.pt.json").read_text()) == origin
    assert read_origin(tmp_path / "deep" / "mask.pt") == Origin(**origin)
    assert sha256 == masks.digest(mask_files.load(tmp_path / "deep" / "mask.pt", shapes))
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["mask.pt", "mask.pt.json"]


def test_the_same_mask_gives_the_same_bytes(tmp_path, mask):
    for name in ("one", "other"):
        mask_files.save(mask, tmp_path / name / "mask.pt", Origin())
    assert (tmp_path / "one/mask.pt").read_bytes() == (tmp_path / "other/mask.pt").read_bytes()


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.float32, torch.float16, torch.int64, torch.uint8, torch.float64]
)
def test_masks_of_any_number_type_load_as_bool(tmp_path, mask, shapes, dtype):
    path = saved(tmp_path, {key: m.to(dtype) for key, m in reversed(mask.items())})
    assert equal(mask_files.load(path, shapes), mask)
    assert masks.digest({key: m.to(dtype) for key, m in mask.items()}) == masks.digest(mask)


def test_different_masks_have_different_digests(mask):
    other = {**mask, QUERY: ~mask[QUERY]}
    moved = {**mask, QUERY: mask[QUERY].flip(0)}
    turned = {**mask, QUERY: mask[QUERY].reshape(-1, 2)}
    assert len({masks.digest(m) for m in (mask, other, moved, turned)}) == 4


class Exploit:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def with_value(value):
    def corrupt(mask):
        changed = mask[QUERY].float()
        changed[1, 2] = value
        return {**mask, QUERY: changed}

    return corrupt


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (
            lambda m: {k: v for k, v in m.items() if k != QUERY},
            f"key {QUERY} is missing \\(1 in all\\)",
        ),
        (
            lambda m: {**m, "bert.encoder.layer.2.weight_mask": m[QUERY]},
            "unexpected key bert.encoder.layer.2.weight_mask",
        ),
        (
            lambda m: {**m, QUERY: m[QUERY][:-1]},
            f"{QUERY} has shape \\(7, 8\\), this model needs \\(8, 8\\)",
        ),
        (with_value(0.5), f"{QUERY} holds 0.5; a mask holds 0 and 1 only"),
        (with_value(2), f"{QUERY} holds 2.0"),
        (with_value(-1), f"{QUERY} holds -1.0"),
        (with_value(float("nan")), f"{QUERY} holds nan"),
        (lambda m: {}, "holds a dict of tensors"),
        (lambda m: list(m.values()), "holds a dict of tensors, this one holds list"),
        (lambda m: m[QUERY], "holds a dict of tensors, this one holds Tensor"),
        (lambda m: {**m, "epoch": 3}, "key 'epoch' does not name a tensor"),
        (lambda m: {**m, 7: m[QUERY]}, "key 7 does not name a tensor"),
        (lambda m: {**m, QUERY: Exploit()}, "not a mask file of tensors only; refused"),
    ],
    ids=[
        "missing",
        "unexpected",
        "shape",
        "half",
        "two",
        "minus one",
        "nan",
        "empty dict",
        "list",
        "tensor",
        "number",
        "number as key",
        "pickle that runs code",
    ],
)
def test_a_wrong_mask_file_is_refused_with_file_and_key(
    tmp_path, monkeypatch, mask, shapes, corrupt, message
):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path, corrupt(mask))
    with pytest.raises(UserError, match=message) as error:
        mask_files.load(path, shapes)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: None, "no such mask file"),
        (lambda whole: b"", "the mask file is truncated or corrupt"),
        (lambda whole: whole[: len(whole) // 2], "truncated or corrupt"),
        (lambda whole: whole[:-1], "truncated or corrupt"),
        (lambda whole: whole[:20], "corrupt|refused"),
        (lambda whole: b"round 1: 10 %\n", "refused|corrupt"),
        (lambda whole: pickle.dumps(Exploit()), "refused|corrupt"),
    ],
    ids=[
        "absent",
        "empty",
        "half",
        "last byte gone",
        "20 bytes",
        "text",
        "bare pickle that runs code",
    ],
)
def test_a_corrupt_mask_file_is_refused(tmp_path, monkeypatch, mask, shapes, content, message):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path, mask)
    changed = content(path.read_bytes())
    path.unlink() if changed is None else path.write_bytes(changed)
    with pytest.raises(UserError, match=message) as error:
        mask_files.load(path, shapes)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert "weights_only" not in str(error.value) and not (tmp_path / "executed").exists()


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch, mask):
    mask_files.save(mask, tmp_path / "mask.pt", Origin())
    before = (tmp_path / "mask.pt").read_bytes()

    def interrupt(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mask_files.save({key: ~m for key, m in mask.items()}, tmp_path / "mask.pt", Origin())
    assert (tmp_path / "mask.pt").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mask.pt", "mask.pt.json"]


# ---- packed masks


def test_a_packed_mask_takes_one_bit_per_weight(tmp_path):
    shape = (768, 3071)  # not a multiple of eight
    mask = {
        "a.weight_mask": torch.rand(shape) > 0.7,
        "b.weight_mask": torch.ones(3, 3, dtype=torch.bool),
    }
    mask_files.pack_mask(mask, tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_size < 768 * 3071 / 8 + 1000
    read = mask_files.unpack_mask(tmp_path / "m.safetensors")
    assert read.keys() == mask.keys() and all(torch.equal(read[key], mask[key]) for key in mask)


@pytest.mark.parametrize(
    ("size", "metadata", "message"),
    [
        (2, {"shapes": '{"k": [3, 3]}'}, "not a packed mask"),
        (2, {mask_files.SHAPES: "{"}, "not a packed mask"),
        (2, {mask_files.SHAPES: "{}"}, "of other keys"),
        (2, {mask_files.SHAPES: '{"k": [3, 3], "l": [1]}'}, "of other keys"),
        (
            1,
            {mask_files.SHAPES: '{"k": [3, 3]}'},
            r"k holds uint8 \(1,\), not the bits of \[3, 3\]",
        ),
        (2, {mask_files.SHAPES: '{"k": [3, -3]}'}, "not the bits of"),
    ],
)
def test_corrupt_packed_masks_are_refused(tmp_path, size, metadata, message):
    path = tmp_path / "m.safetensors"
    save_file({"k": torch.full((size,), 255, dtype=torch.uint8).numpy()}, path, metadata=metadata)
    with pytest.raises(UserError, match=message) as caught:
        mask_files.unpack_mask(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"not a file of tensors"])
def test_files_other_than_safetensors_are_refused(tmp_path, content):
    if content is not None:
        (tmp_path / files.PACKED_MASK).write_bytes(content)
    with pytest.raises(UserError, match=r"mask\.safetensors"):
        mask_files.unpack_mask(tmp_path)


# ---- kinds of tensors


SPECIAL = {
    "sparse": lambda value: value.to_sparse(),
    "meta": lambda value: value.to("meta"),
    "nested": lambda value: torch.nested.nested_tensor([value, value[:1]]),
    "complex64": lambda value: value.to(torch.complex64),
    "float8_e4m3fn": lambda value: value.to(torch.float8_e4m3fn),
    "uint16": lambda value: value.to(torch.uint16),
}


@pytest.mark.parametrize("what", ["mask", "weight"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_only_dense_tensors_of_a_known_type_load(tmp_path, kind, what):
    path = saved(tmp_path, {"good": torch.ones(2, 2), QUERY: SPECIAL[kind](torch.ones(2, 2))})
    with pytest.raises(UserError, match=f"{path}: {QUERY} is a tensor of another kind"):
        mask_files.load_tensors(path, what)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8])
def test_weights_are_floats(tmp_path, dtype):
    model = tiny_model()
    weights = {name: value.clone() for name, value in masks.snapshot(model).items()}
    name = QUERY.removesuffix("_mask")
    weights[name] = weights[name].to(dtype)
    path = saved(tmp_path, weights)
    with pytest.raises(UserError, match=f"{path}: {name} has the type .*, not a float"):
        load_initial_weights(model, str(path), "pre")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "_orig_mod.module."])
def test_a_prefix_of_all_keys_is_removed(tmp_path, mask, shapes, prefix):
    content = {prefix + key: value for key, value in mask.items()}
    assert equal(mask_files.load(saved(tmp_path, content), shapes), mask)
    content[QUERY] = content.pop(prefix + QUERY)  # not all: another architecture
    with pytest.raises(UserError, match="is missing"):
        mask_files.load(saved(tmp_path, content), shapes)


@pytest.mark.parametrize("value", [torch.tensor(1.0), torch.ones(0), torch.ones(1, 8, 8)])
def test_a_mask_of_another_rank_is_refused_by_its_shape(tmp_path, mask, shapes, value):
    path = saved(tmp_path, {**mask, QUERY: value})
    with pytest.raises(UserError, match=f"{path}: {QUERY} has shape"):
        mask_files.load(path, shapes)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "5", "null"])
def test_broken_shapes_of_a_packed_mask_are_refused(tmp_path, text):
    path = tmp_path / files.PACKED_MASK
    packed = {QUERY: np.zeros(1, np.uint8)}
    save_file(packed, path, metadata={mask_files.SHAPES: text})
    with pytest.raises(UserError, match=str(path)):
        mask_files.unpack_mask(tmp_path)
