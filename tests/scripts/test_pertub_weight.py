"""theta_0'' of Table 2: layers permuted, elements permuted within their matrix, or noise added."""

import json

import launch
import pytest
import tiny
import torch
from launch import done
from safetensors.torch import load_file

LAYERS = 4
POOLER = "bert.pooler.dense.weight"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny.bert(tmp_path_factory.mktemp("perturbation") / "bert", layers=LAYERS)


def perturbed(bert, out, *flags):
    done("pertub_weight.py", "--model_name_or_path", bert, "--output", out, *flags)
    weights, before = torch.load(out, weights_only=True), load_file(bert / "model.safetensors")
    assert set(weights) == {
        name
        for name in before
        if name.endswith(".weight")
        and before[name].dim() == 2
        and name.startswith("bert.")
        and "embeddings" not in name
    }
    return weights, before


def source_layer(weights, before, layer):
    """The layers of `before` with the six matrices that `layer` of `weights` has."""
    names = [name for name in weights if f".layer.{layer}." in name]
    assert len(names) == 6
    return [
        other
        for other in range(LAYERS)
        if all(
            torch.equal(weights[name], before[name.replace(f".layer.{layer}.", f".layer.{other}.")])
            for name in names
        )
    ]


def test_by_default_whole_layers_move_and_the_pooler_stays(bert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = done("pertub_weight.py", "--model_name_or_path", bert)
    assert out.startswith("tmp/shuffle_weight.pt: ")  # the name in the released commands
    weights, before = (
        torch.load("tmp/shuffle_weight.pt", weights_only=True),
        load_file(bert / "model.safetensors"),
    )
    order = [source_layer(weights, before, layer) for layer in range(LAYERS)]
    assert sorted(order) == [[0], [1], [2], [3]] and order != sorted(order)
    assert torch.equal(weights[POOLER], before[POOLER])
    info = json.loads((tmp_path / "tmp" / "shuffle_weight.pt.json").read_text())
    assert (info["mode"], info["seed"]) == ("layers", 42)


def test_elements_stay_in_their_matrix(bert, tmp_path):
    weights, before = perturbed(bert, tmp_path / "w.pt", "--mode", "elements")
    for name, value in weights.items():
        assert not torch.equal(value, before[name])
        assert torch.equal(value.flatten().sort().values, before[name].flatten().sort().values), (
            name
        )


def test_noise_has_the_requested_deviation(bert, tmp_path):
    weights, before = perturbed(bert, tmp_path / "w.pt", "--mode", "noise", "--sigma", 0.05)
    noise = torch.cat([(value - before[name]).flatten() for name, value in weights.items()])
    assert noise.std().item() == pytest.approx(0.05, rel=0.03) and abs(noise.mean().item()) < 0.002


@pytest.mark.parametrize("mode", ["layers", "elements", "noise"])
def test_the_draw_depends_on_the_seed(bert, tmp_path, mode):
    one, again, other = (
        perturbed(bert, tmp_path / f"{number}.pt", "--mode", mode, "--seed", seed)[0]
        for number, seed in enumerate((1, 1, 2))
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("sigma", ["0", "-1", "nan", "inf"])
def test_invalid_sigma_is_refused(bert, tmp_path, sigma):
    ended = launch.run(
        "pertub_weight.py",
        *("--model_name_or_path", bert, "--output", tmp_path / "w.pt"),
        *("--mode", "noise", f"--sigma={sigma}"),
    )
    (line,) = ended.errors()
    assert ended.code == 2 and "--sigma" in line and list(tmp_path.iterdir()) == []
