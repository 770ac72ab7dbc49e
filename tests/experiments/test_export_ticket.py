"""Exported tickets: what a user of stock transformers loads, the mask, and the model card."""

import dataclasses
import json
import textwrap
from pathlib import Path

import pytest
import torch
from results_tree import mask_info, small_mask
from torch.nn.utils import prune
from transformers import BertConfig, BertModel, BertTokenizer

import oneshot
from experiments import export_ticket
from utils.data.glue import SPECS
from utils.errors import UserError
from utils.pruning import mask_files, masks
from utils.pruning.origin import Origin

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "ticket", "wins"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small BERT, 20 wide, with the matrices of `small_mask`."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(WORDS),
            hidden_size=20,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=20,
            max_position_embeddings=16,
        )
    ).save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    return folder


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    mask_files.save(small_mask(0.7, 3), folder / "mask.pt", Origin(**mask_info("sts-b", 0.7, 5)))
    export_ticket.main([str(folder / "mask.pt"), "--model", str(model), str(folder / "ticket")])
    return folder / "ticket"


def test_stock_transformers_loads_m_times_theta_0(model, exported):
    theta = BertModel.from_pretrained(model).state_dict()
    loaded, info = BertModel.from_pretrained(exported, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (
        "packed_rows" not in (exported / "config.json").read_text()
    )  # our attention, which others do not have
    mask = small_mask(0.7, 3)
    for name, value in loaded.state_dict().items():
        keep = mask.get(f"bert.{name}_mask")
        assert torch.equal(value, theta[name] if keep is None else theta[name] * keep), name
    assert BertTokenizer.from_pretrained(exported)("the ticket wins")["input_ids"] == [
        2,
        5,
        6,
        7,
        3,
    ]


def test_the_folder_is_a_mask_for_the_scripts(exported):
    mask = small_mask(0.7, 3)
    shapes = {name.removesuffix(masks.SUFFIX): value.shape for name, value in mask.items()}
    loaded = mask_files.load(exported, shapes)
    assert masks.digest(loaded) == masks.digest(mask)
    info = json.loads((exported / "mask.safetensors.json").read_text())
    assert info["mask_sha256"] == masks.digest(mask) and (info["task"], info["seed"]) == (
        "sts-b",
        5,
    )


def test_the_card_says_where_the_ticket_comes_from(model, exported):
    text = (exported / "README.md").read_text()
    assert (
        text.startswith("---\nlibrary_name: transformers\n")
        and "# 70% sparse ticket of BERT, found on STS-B" in text
    )
    for line in (
        f"| theta_0 | {model} |",
        "| seed | 5 |",
        "iterative magnitude pruning",
        "70.0000%",
        'BertModel.from_pretrained("ticket")',
        "13 weight matrices",
    ):
        assert line in text


@pytest.mark.parametrize("method", oneshot.METHODS.values())
def test_the_card_names_the_method_of_every_mask(method):
    text = export_ticket.card(Origin(method=method, sparsity=0.5), "ticket", "bert", 73, "")
    assert "mask found by" in text and "unrecorded" not in text


def test_the_card_of_ones_own_task_names_no_dataset_of_the_hub(monkeypatch):
    monkeypatch.setitem(SPECS, "mine", dataclasses.replace(SPECS["rte"], name="mine"))
    origins = [Origin(method="imp", task=task, sparsity=0.5) for task in ("rte", "mnli-mm", "mine")]
    texts = [export_ticket.card(origin, "ticket", "bert", 73, "") for origin in origins]
    assert ["datasets: nyu-mll/glue" in text for text in texts] == [True, True, False]


def test_the_snippet_of_the_card_trains_under_the_mask(exported, monkeypatch):
    monkeypatch.chdir(exported.parent)
    lines = (exported / "README.md").read_text().splitlines()
    first = lines.index("    import json")
    last = next(at for at in range(first, len(lines)) if lines[at] and lines[at][0] != " ")
    exec(textwrap.dedent("\n".join(lines[first:last])), names := {})
    model, tokenizer = names["model"], names["tokenizer"]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    batch = tokenizer(["the ticket wins", "the"], padding=True, return_tensors="pt")
    for _ in range(3):
        model(**batch, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model(**batch)  # the hooks mask the weights in each forward pass
    for key, keep in small_mask(0.7, 3).items():
        module = model.get_submodule(key.removesuffix(masks.SUFFIX))
        assert torch.equal(module.weight != 0, keep), key
        changed = module.weight_orig != before[key.replace("weight_mask", "weight_orig")]
        assert changed[keep].any() and module.weight_mask.dtype == torch.float32
    for module in model.modules():
        if hasattr(module, "weight_mask"):
            prune.remove(module, "weight")
    assert "bert.pooler.dense.weight" in model.state_dict()


def test_exporting_the_exported_changes_nothing(model, exported, tmp_path):
    export_ticket.export(exported, str(model), tmp_path / "again", None)
    for name in ("model.safetensors", "mask.safetensors", "mask.safetensors.json", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes()


def test_a_released_float_mask_exports_without_an_origin(model, tmp_path):
    torch.save(
        {key: value.float() for key, value in small_mask(0.5, 1).items()}, tmp_path / "mask.pt"
    )
    export_ticket.export(tmp_path / "mask.pt", str(model), tmp_path / "out", None)
    assert "an unrecorded method" in (tmp_path / "out" / "README.md").read_text()


def test_a_failed_export_leaves_nothing(model, exported, tmp_path):
    mask_files.save(small_mask(0.5, 1, layers=3), tmp_path / "mask.pt", Origin())
    with pytest.raises(UserError, match="unexpected key"):
        export_ticket.export(tmp_path / "mask.pt", str(model), tmp_path / "out", None)
    assert [entry.name for entry in sorted(tmp_path.iterdir())] == ["mask.pt", "mask.pt.json"]
    with pytest.raises(UserError, match="exists already"):
        export_ticket.export(tmp_path / "mask.pt", str(model), exported, None)


def test_the_card_shows_the_scores_of_the_run_that_found_the_mask(model, tmp_path):
    mask = tmp_path / "run" / "checkpoint-4" / "mask.pt"
    digest = mask_files.save(small_mask(0.7, 3), mask, Origin(**mask_info("sts-b", 0.7, 5)))
    row = {"task": "sts-b", "method": "imp", "init": "pre", "seed": 5}
    rows = [
        {"sparsity": 0.0, "score": 88.5},
        {"sparsity": 0.7, "score": 87.25, "mask_sha256": digest},
        {"sparsity": 0.7, "score": 10.0, "mask_sha256": digest, "final": False},
    ]
    results = mask.parent.parent / "results.jsonl"
    results.write_text("".join(json.dumps(row | each) + "\n" for each in rows))
    export_ticket.main([str(mask), "--model", str(model), str(tmp_path / "ticket")])
    text = (tmp_path / "ticket" / "README.md").read_text()
    assert "| sparsity | score |\n|---|---|\n| 0% | 88.50 |\n| 70% | 87.25 |\n\nThe mask" in text
