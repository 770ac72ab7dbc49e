"""The released code's outputs, number by number. Set LTH_GOLDEN to compare another folder of them.

Every run in the folder is compared. `reference_adapter` holds everything that depends on the
structure of the project.
"""

import contextlib
import copy
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import launch
import numpy as np
import pytest
import reference_adapter as adapter
import reference_runs
import tiny
import torch
from launch import results
from reference_adapter import Draws, Recording
from reference_runs import GOLDEN, ReferenceRun, assets_of, read_json, read_mask
from released_replay import can_replay

NEAR_TIES = 1e-4  # of all weights; 26 of 593,920 were seen, other rules or schedules make thousands
NOISE = 1e-4  # norm of a tensor that moved by rounding only
FIRST_TIES = 8  # weights of the first mask that differs: later masks follow from it
ASSETS = assets_of(GOLDEN)
SOURCE = ASSETS / "model"
SQUAD = ASSETS / "squad"
COUNTED = {"acc", "f1", "acc_and_f1"}  # GLUE metrics that are ratios of integers
CONTINUOUS = {"pearson", "spearmanr", "corr", "perplexity"}  # in the logits; others are of counts


def runs(what: str, chosen: Callable[[ReferenceRun], bool] = lambda run: True):
    """A parameter `run` for each run in the folder `what`, or for the `chosen` ones."""
    found = list(filter(chosen, reference_runs.found(GOLDEN, what)))
    return pytest.mark.parametrize("run", found, ids=[run.folder.name for run in found])


def files(pattern: str) -> pytest.MarkDecorator:
    """A parameter `path` for each file or folder of the reference."""
    found = sorted(GOLDEN.glob(pattern))
    return pytest.mark.parametrize("path", found, ids=[path.stem for path in found])


def stored(name: str) -> dict:
    """A JSON file of the reference; empty if there is none."""
    return read_json(GOLDEN / name) if (GOLDEN / name).exists() else {}


FEATURES, METRICS = stored("glue_features.json"), stored("glue_metrics.json")


def test_the_folder_holds_reference_outputs(golden):
    path = GOLDEN if "LTH_GOLDEN" in os.environ else golden
    assert any(path.glob("*/*")), f"{path}: no reference outputs"
    assert SOURCE.is_dir(), f"{SOURCE}: the reference model is missing"


# ---- comparisons


def assert_same_mask(found, expected):
    assert set(found) == set(expected)
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []


def assert_same_steps(found, expected, tolerance):
    assert len(found) == len(expected)
    for key, allowed in (("lr", 1e-12), ("loss", tolerance), ("grad_norm", tolerance)):
        apart = [abs(a[key] - b[key]) for a, b in zip(found, expected, strict=True)]
        at = int(np.argmax(apart))
        assert apart[at] < allowed, f"{key} of step {at}: {apart[at]} apart"


def assert_same_metrics(found, expected, exact=True):
    """Compare metrics; ratios of integer counts must be equal if `exact`, else agree to 1e-9."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        tolerance = metric_tolerance(key, expected, exact)
        wanted = pytest.approx(value, rel=tolerance, abs=tolerance, nan_ok=True)
        assert found[key] == wanted, key


def metric_tolerance(key, metrics, exact):
    """Relative and absolute tolerance of one of the `metrics` of an evaluation."""
    if key in CONTINUOUS:
        return 1e-4
    if "perplexity" in metrics:
        return 1e-6  # the accuracy of MLM: the reference has means in float32
    rounds = key == "mcc" or ("exact" in metrics and key.endswith("f1"))  # in its last digits
    return 0 if exact and not rounds else 1e-9


def assert_same_state(state, sums, tolerance):
    """Sum and norm of every tensor of the final state.

    Some biases have no gradient but rounding, as the last one of SQuAD's encoder: a constant does
    not change a softmax. They stay at about 1e-5, and only their size is compared.
    """
    assert set(state) == set(sums)
    for name, (total, norm) in sums.items():
        value = state[name].double()
        if norm < NOISE:
            assert float(value.norm()) < 2 * NOISE, name
            continue
        assert float(value.norm()) == pytest.approx(norm, rel=tolerance, abs=1e-6), name
        allowed = tolerance * max(1.0, norm) * value.numel() ** 0.5
        assert float(value.sum()) == pytest.approx(total, abs=allowed), name


# ---- one replayed run


def replayed(run: ReferenceRun, work: Path, *flags) -> tuple[Recording, list[dict]]:
    """Run the script with the reference's draws.

    Returns the recording, and the metrics of the model at each step that the reference evaluates.
    """
    draws = Draws(run.head, run.order, run.mlm_batches)
    drawn = evaluation_batches(run, work) if run.kind == "mlm" else {}
    found = []

    def after_step(recording: Recording) -> None:
        for _ in range(run.evaluation_steps.count(len(recording.steps))):
            if run.kind == "mlm":
                found.append(recording.evaluate_mlm(drawn[len(recording.steps)]))
            else:
                found.append(recording.evaluate())

    with adapter.recorded(draws, after_step) as recording:
        ended = launch.run(run.script, *run.flags(work), *flags)
    assert ended.code == 0, ended.err
    return recording, found


def evaluation_batches(run: ReferenceRun, work: Path) -> dict[int, list]:
    """MLM: the released code's masked evaluation batches, by the step of the evaluation.

    They are drawn again together with the training batches, which must be the stored ones.
    """
    size = int(run.number("block_size"))
    text = [
        adapter.mlm_blocks(run.assets / "text" / name, run.assets / "model", size, work)
        for name in ("en.train", "en.valid")
    ]
    t, drawn, training = text[0], {}, 0
    pairs = reference_runs.redrawn(
        run, t.blocks, text[1].blocks, t.special_ids, t.mask_id, t.vocab_size
    )
    for what, step, ids, labels in pairs:
        if what == "dev":
            drawn.setdefault(step, []).append((ids, labels))
        else:
            for ours, theirs in zip((ids, labels), run.mlm_batches[training], strict=True):
                assert np.array_equal(ours, theirs), f"training batch {training}: other masks"
            training += 1
    assert training == len(run.mlm_batches)
    return drawn


# ---- one-shot pruning


@pytest.mark.parametrize("model", ["glue", "squad", "pretrain"])
@files("omp/*.npz")
def test_one_shot_masks(path, model, tmp_path):
    rate = path.stem.rpartition("_")[2]
    flags = ["--weight", "pre", "--model", model, "--rate", rate, "--model_name_or_path", SOURCE]
    ended = launch.run("oneshot.py", *flags, "--output_dir", tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert_same_mask(adapter.read_mask(tmp_path / "mask.pt"), read_mask(path))


# ---- IMP


@runs("imp")
def test_imp_as_released(run, tmp_path):
    compare_imp(run, tmp_path)


def compare_imp(run: ReferenceRun, work: Path) -> None:
    """Compare a run of IMP with the reference.

    For GLUE, losses and masks equal those of the released operations on this machine bit for bit.
    Masks equal the stored ones up to near ties: if two weights at the threshold differ by rounding
    only, another CPU may swap them, and some weights of the later masks follow.
    """
    with replay(run, work / "replay.pt") as rounds_on_this_machine:
        recording, metrics = replayed(run, work, "--as_released")
    check_imp(run, recording, metrics, work / "out", rounds_on_this_machine)


def check_imp(
    run: ReferenceRun, recording: Recording, metrics: list[dict], out: Path, replayed_rounds: list
) -> None:
    """Compare what our run recorded and wrote to `out`."""
    masks = masks_by_size(recording, out)
    rounds, steps = run.record["rounds"], recording.steps
    stored_masks = run.masks
    assert len(stored_masks) == len(rounds)
    apart = []
    for mask, entry in zip(stored_masks, rounds, strict=True):
        folder, ours = masks[entry["pruned"]]
        assert run.kind == "mlm" or folder == entry["checkpoint"]
        assert set(ours) == set(mask) and sum(m.numel() for m in ours.values()) == entry["total"]
        apart.append(sum(int((ours[key] != mask[key]).sum()) for key in mask))
    done = 0
    for number, (losses, mask) in enumerate(replayed_rounds):
        assert_same_mask(masks[rounds[number]["pruned"]][1], mask)
        assert [step["loss"] for step in steps[done : done + len(losses)]] == losses
        done += len(losses)
    assert max(apart) <= NEAR_TIES * rounds[0]["total"], apart
    assert next((bits for bits in apart if bits), 0) <= FIRST_TIES, apart
    assert len(steps) == len(run.steps)
    same = steps_before_a_near_tie(run, apart)
    assert_same_steps(steps[:same], run.steps[:same], 1e-5)
    assert_same_steps(steps, run.steps, 1e-3)
    exact = [step <= same for step in run.evaluation_steps]
    for each in zip(metrics, run.metrics, exact, strict=True):
        assert_same_metrics(*each)
    rows = [row["metrics"] for row in results(out) if row["final"]]
    if run.kind != "mlm" and len(rows) == len(run.metrics):
        for each in zip(rows, run.metrics, exact, strict=True):
            assert_same_metrics(*each)
    if (run.folder / "final_state_sums.json").exists():
        assert_same_state(recording.state(), run.state_sums, 1e-4 if any(apart) else 1e-5)


def steps_before_a_near_tie(run: ReferenceRun, apart: list[int]) -> int:
    """Number of steps trained with masks equal to the stored ones."""
    first = next((at for at, bits in enumerate(apart) if bits), None)
    if first is None:
        return len(run.steps)
    length = int(run.number("save_steps"))
    return (first + (run.kind != "mlm")) * length - (run.kind == "squad")


def masks_by_size(recording: Recording, out: Path) -> dict[int, tuple[str, dict]]:
    """Folder and mask of each round, by the number of pruned weights."""
    found = {path.parent.name: adapter.read_mask(path) for path in out.glob("*/mask.pt")}
    found["before training"] = recording.first_mask
    return {reference_runs.pruned(mask): (name, mask) for name, mask in found.items()}


@contextlib.contextmanager
def replay(run: ReferenceRun, out: Path):
    """The rounds by transformers' operations, computed meanwhile; empty if there is no replay."""
    rounds = []
    if not can_replay(run):
        yield rounds
        return
    command = [sys.executable, Path(__file__).parent / "released_replay.py"]
    process = subprocess.Popen([*command, run.folder, run.assets, out])
    try:
        yield rounds
        assert process.wait() == 0
        rounds += torch.load(out, weights_only=True)
    finally:
        process.kill()


# ---- fine-tuning


@runs("finetune")
def test_fine_tuning_as_released(run, tmp_path):
    compare_fine_tuning(run, tmp_path, "--as_released")


def same_by_the_papers_rules(run: ReferenceRun) -> bool:
    """Whether --as_released changes no number of this run: GLUE but MNLI, in whole epochs."""
    whole = run.number("max_steps") <= 0 and run.number("gradient_accumulation_steps") == 1
    return run.kind == "glue" and run.task != "mnli" and whole


@runs("finetune", same_by_the_papers_rules)
def test_fine_tuning_by_the_papers_rules(run, tmp_path):
    compare_fine_tuning(run, tmp_path)


def compare_fine_tuning(run: ReferenceRun, work: Path, *flags) -> None:
    """Compare steps, metrics, predictions, logits and final state of a fine-tuning."""
    mask = run.mask()
    if mask is not None:
        adapter.write_mask(work / "mask.pt", mask)
        flags = (*flags, "--mask_dir", work / "mask.pt")
    recording, metrics = replayed(run, work, *flags)
    assert_same_steps(recording.steps, run.steps, 1e-5)
    assert len(metrics) == len(run.metrics)
    for found, expected in zip(metrics, run.metrics, strict=True):
        assert_same_metrics(found, expected)
    rows = results(work / "out")
    if run.sparsity is not None:
        assert {row["sparsity"] for row in rows} == {round(run.sparsity / 100, 9)}
    assert rows[-1]["step"] == len(run.steps)
    if run.kind != "mlm":
        expected = dict(zip(run.evaluation_steps, run.metrics, strict=True))
        for row in rows:
            if row["step"] in expected:
                assert_same_metrics(row["metrics"], expected[row["step"]])
    if (run.folder / "eval_logits.npz").exists() and run.kind == "glue":
        logits = np.load(run.folder / "eval_logits.npz")["logits"]
        assert np.abs(recording.logits() - logits).max() < 1e-4
    compare_predictions(run.folder, work / "out")
    assert_same_state(recording.state(), run.state_sums, 1e-5)


def compare_predictions(expected: Path, found: Path) -> None:
    """SQuAD: the answers and n-best lists of the end."""
    if (expected / "predictions_.json").exists():
        ours, theirs = (read_json(path / "predictions_.json") for path in (found, expected))
        assert ours == theirs
    if (expected / "nbest_predictions_.json").exists():
        assert_same_nbest(*(read_json(p / "nbest_predictions_.json") for p in (found, expected)))


def assert_same_nbest(found: dict, expected: dict, tolerance: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for name, entries in expected.items():
        texts = [[entry["text"] for entry in each] for each in (found[name], entries)]
        for key in ("probability", "start_logit", "end_logit"):
            values = [entry[key] for entry in entries]
            assert [entry[key] for entry in found[name]] == pytest.approx(values, abs=tolerance)
        totals = [entry["start_logit"] + entry["end_logit"] for entry in entries]
        for at, (ours, theirs) in enumerate(zip(*texts, strict=True)):
            near = [i for i, total in enumerate(totals) if abs(total - totals[at]) < tolerance]
            assert ours == theirs or ours in [texts[1][i] for i in near], (name, at)


# ---- GLUE rows and metrics


def unpadded(feature: dict) -> tuple[list[int], list[int]]:
    """(ids, types) of a stored feature; its padding must be zeros after the attended tokens."""
    size = sum(feature["attention_mask"])
    for key in ("input_ids", "token_type_ids", "attention_mask"):
        assert not any(feature[key][size:])
    return feature["input_ids"][:size], feature["token_type_ids"][:size]


@pytest.mark.parametrize("name", [name for name in FEATURES if not name.startswith("edge/")])
def test_glue_rows(name):
    task, split = name.split("/")
    expected, folder = FEATURES[name], reference_runs.glue_folder(ASSETS, task)
    for length, features in expected["features"].items():
        data = adapter.load_glue(task, folder, split, SOURCE, int(length))
        assert data.label_list == expected["labels"]
        assert len(data.text_a) == len(data.labels) == expected["n_examples"]
        first = expected["examples"]
        assert data.text_a[: len(first)] == [row["text_a"] for row in first]
        text_b = data.text_b or [None] * len(data.text_a)
        assert text_b[: len(first)] == [row["text_b"] for row in first]
        assert data.rows[: len(features)] == [unpadded(feature) for feature in features]
        labels = [feature["label"] for feature in features]
        assert data.labels[: len(features)] == pytest.approx(labels, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in FEATURES if name.startswith("edge/")])
def test_glue_edge_cases(name):
    for length, features in FEATURES[name]["features"].items():
        for row, feature in zip(FEATURES[name]["examples"], features, strict=True):
            found = adapter.glue_features(row["text_a"], row["text_b"], SOURCE, int(length))
            assert found == unpadded(feature)


@pytest.mark.parametrize("task", METRICS.get("metrics", {}))
def test_glue_metrics(task):
    expected = METRICS["metrics"][task]
    predictions, labels = ("pf", "yf") if "pearson" in expected else ("p", "y")
    found = adapter.glue_metrics(task, np.array(METRICS[predictions]), np.array(METRICS[labels]))
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=0, abs=1e-9)
    assert all(found[key] == expected[key] for key in found.keys() & COUNTED)


# ---- SQuAD windows and answers


def window_sizes(path: Path) -> tuple[int, int, int]:
    """Length, stride and longest question, from the name NAME_LENGTH_STRIDE_MAXQUERY."""
    return tuple(int(part) for part in path.stem.split("_")[-3:])


@files("squad/examples_*.json")
def test_squad_examples(path):
    file = SQUAD / f"{path.stem.partition('_')[2]}-v1.1.json"
    expected = read_json(path)
    keys = expected[0].keys()
    found = [{k: e[k] for k in keys if k in e} for e in adapter.squad_examples(file, v2=False)]
    for ours, theirs in zip(found, expected, strict=False):
        assert len(ours) >= 5 and ours == {k: theirs[k] for k in ours}


@files("squad/features_*.json")
def test_squad_windows(path):
    split, expected = path.stem.split("_")[1], read_json(path)
    file, training = SQUAD / f"{split}-v1.1.json", split == "train"
    found = adapter.squad_windows(file, SOURCE, window_sizes(path), training)
    assert len(found) == expected["n_features"]
    for ours, theirs in zip(found, expected["features"], strict=False):
        ids, types = unpadded(theirs)
        assert (ours["input_ids"], ours["token_type_ids"]) == (ids, types)
        for key in ("example_index", "start_position", "end_position", "token_to_orig_map"):
            assert ours[key] == theirs[key], key
        context = theirs["token_is_max_context"]
        wanted = [context.get(str(token), False) for token in range(len(ids))]
        assert ours["token_is_max_context"] == wanted


@files("squad/eval_*")
def test_squad_answers(path):
    file, given = SQUAD / "dev-v1.1.json", np.load(path / "logits.npz")
    sizes = window_sizes(path)
    found = adapter.answers_from_logits(file, SOURCE, sizes, given["start"], given["end"])
    predictions = read_json(path / "predictions.json")
    assert found[0] == predictions
    assert_same_nbest(found[1], read_json(path / "nbest.json"), 1e-6)
    expected = read_json(path / "metrics.json")
    assert_same_metrics(adapter.squad_metrics(file, predictions), expected)


# ---- IMP for SQuAD and MLM, on a reference of our own in the same format


@pytest.fixture(scope="module")
def own_assets(tmp_path_factory) -> Path:
    """A tiny model without dropout, with SQuAD data and text."""
    assets = tmp_path_factory.mktemp("own") / "assets"
    tiny.bert(assets / "model", dropout=0.0)
    tiny.squad(assets / "squad")
    tiny.text(assets / "text")
    return assets


def write_own_reference(kind: str, assets: Path, work: Path) -> ReferenceRun:
    """Write what our --as_released run computes, in the format of the reference."""
    folder = assets.parent / "imp" / f"{kind}_{work.name}"
    folder.mkdir(parents=True)
    common = {"gradient_accumulation_steps": "1", "weight_decay": "0.0", "learning_rate": "0.005"}
    common |= {"adam_epsilon": "1e-08", "warmup_steps": "0", "max_grad_norm": "1.0", "seed": "57"}
    common |= {"max_steps": "-1", "num_train_epochs": "10.0", "save_steps": "3"}
    common |= {"logging_steps": "3", "evaluate_during_training": "True"}
    common |= {"per_gpu_train_batch_size": "4", "per_gpu_eval_batch_size": "4"}
    if kind == "squad":
        args = {"max_seq_length": "64", "doc_stride": "24", "max_query_length": "16"}
        args |= {"do_lower_case": "True", "n_best_size": "20", "max_answer_length": "30"}
    else:
        args = {"block_size": "32", "mlm": "True", "mlm_probability": "0.15"}
    record = {"steps": [], "result_pt": [], "rounds": [], "args": common | args}
    total = 29 if kind == "squad" else 27
    draw = np.random.default_rng(3)
    if kind == "squad":
        sizes = (64, 24, 16)
        file = assets / "squad" / "train-v1.1.json"
        rows = len(adapter.squad_windows(file, assets / "model", sizes, training=True))
        head = {"qa_outputs.weight": (2, 32), "qa_outputs.bias": (2,)}
    else:
        file = assets / "text" / "en.train"
        rows = len(adapter.mlm_blocks(file, assets / "model", 32, work).blocks)
        head = {"cls.predictions.transform.dense.bias": (32,)}
    epochs = range(math.ceil(total / math.ceil(rows / 4)))
    order = {f"epoch_{epoch}": draw.permutation(rows) for epoch in epochs}
    np.savez(folder / "order.npz", **order)
    values = {k: 0.1 * draw.standard_normal(shape).astype(np.float32) for k, shape in head.items()}
    np.savez(folder / "init_head.npz", **values)
    record["steps"] = [{}] * total
    record["result_pt"] = [{}] * (10 if kind == "squad" else 9)
    (folder / "run.json").write_text(json.dumps(record))
    if kind == "mlm":
        write_own_mlm_batches(folder, assets, work)
    run = ReferenceRun(folder, assets, True)
    recording, metrics = replayed(run, work, "--as_released")
    masks = masks_by_size(recording, work / "out")
    masks.pop(0, None)
    for number, (size, (name, mask)) in enumerate(sorted(masks.items()), 1):
        reference_runs.write_mask(folder / f"mask_{number:02d}.npz", mask)
        weights = sum(m.numel() for m in mask.values())
        record["rounds"].append({"checkpoint": name, "pruned": size, "total": weights})
    state = {k: v.double() for k, v in recording.state().items()}
    sums = {name: [float(v.sum()), float(v.norm())] for name, v in state.items()}
    record |= {"steps": recording.steps, "result_pt": metrics}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "final_state_sums.json").write_text(json.dumps(sums))
    return ReferenceRun(folder, assets, True)


def write_own_mlm_batches(folder: Path, assets: Path, work: Path) -> None:
    """The training batches, masked as the released code masks them."""
    run = ReferenceRun(folder, assets, True)
    names = ("en.train", "en.valid")
    text = [adapter.mlm_blocks(assets / "text" / n, assets / "model", 32, work) for n in names]
    t = text[0]
    pairs = reference_runs.redrawn(
        run, t.blocks, text[1].blocks, t.special_ids, t.mask_id, t.vocab_size
    )
    training = [(ids, labels) for what, _, ids, labels in pairs if what == "train"]
    arrays = {f"input_ids_{n:03d}": ids for n, (ids, _) in enumerate(training)}
    arrays |= {f"labels_{n:03d}": labels for n, (_, labels) in enumerate(training)}
    np.savez(folder / "mlm_batches.npz", **arrays)


@pytest.mark.parametrize("kind", ["squad", "mlm"])
def test_imp_is_compared_for_every_task(kind, own_assets, tmp_path):
    """The comparison accepts our own run. It rejects another loss, metric or mask."""
    for folder in ("written", "found"):
        (tmp_path / folder).mkdir()
    run = write_own_reference(kind, own_assets, tmp_path / "written")
    assert run.kind == kind and len(run.masks) == 10
    assert run.folder in [each.folder for each in reference_runs.found(own_assets.parent, "imp")]
    found = replayed(run, tmp_path / "found", "--as_released")
    out = tmp_path / "found" / "out"
    check_imp(run, *found, out, [])
    for change in ("steps", "result_pt"):
        changed, record = ReferenceRun(run.folder, own_assets, True), copy.deepcopy(run.record)
        for key in record[change][4]:
            record[change][4][key] += 0.01
        changed.__dict__["record"] = record
        with pytest.raises(AssertionError):
            check_imp(changed, *found, out, [])
    path = run.folder / "mask_05.npz"
    mask = read_mask(path)
    key = next(iter(mask))
    mask[key][:10] = ~mask[key][:10]
    reference_runs.write_mask(path, mask)
    with pytest.raises(AssertionError):
        check_imp(ReferenceRun(run.folder, own_assets, True), *found, out, [])
