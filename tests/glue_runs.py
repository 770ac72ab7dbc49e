"""Runs of the GLUE scripts on a tiny BERT: their flags, and readers of their output folders."""

import json

import tiny
import torch
from launch import done, results
from safetensors.torch import load_file

PEAK = 1e-3  # learning rate
MODEL_FILES = {
    *("config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.txt"),
}
ROW = {
    *("task", "script", "method", "init", "init_info", "seed", "args", "versions", "device"),
    *("sparsity", "mask", "mask_sha256", "mask_info", "step", "round", "final"),
    *("metrics", "score", "wall_seconds"),
}


def make_data(factory):
    """A folder with the tiny BERT and two tasks; all test modules share it."""
    folder = factory.getbasetemp() / "glue_runs"
    if not folder.exists():
        tiny.bert(folder / "bert")
        for task in ("STS-B", "MRPC"):
            tiny.glue(folder / task, task, train=40, dev=16)
    return folder


def find_nine_tickets(factory):
    """LT_glue.py for 40 steps with every other default: its folder and its stdout."""
    data, base = make_data(factory), factory.getbasetemp()
    out, stdout = base / "ten_rounds", base / "ten_rounds.txt"
    if not stdout.exists():
        stdout.write_text(done("LT_glue.py", *command(data, out, "--max_steps", 40)))
    return out, stdout.read_text()


def evaluation(data, out, *more, task="STS-B", model="bert"):
    """Flags of an evaluation."""
    return [
        *("--output_dir", out, "--model_name_or_path", data / model),
        *("--task_name", task, "--data_dir", data / task),
        *("--do_eval", "--do_lower_case", "--max_seq_length", 32),
        *("--per_gpu_train_batch_size", 8, "--learning_rate", PEAK, "--no_cuda", *more),
    ]


def command(data, out, *more, task="STS-B"):
    """Flags of a run: five batches of eight rows in an epoch."""
    return evaluation(data, out, "--do_train", *more, task=task)


def tickets(folder):
    return json.loads((folder / "tickets.json").read_text())["tickets"]


def mask_at(folder, step):
    return torch.load(folder / f"checkpoint-{step}" / "mask.pt", weights_only=True)


def digests(folder):
    return [ticket["mask_sha256"] for ticket in tickets(folder)]


def dropped(mask):
    return sum(int((~m).sum()) for m in mask.values())


def total(mask):
    return sum(m.numel() for m in mask.values())


def zeros(folder, mask):
    """How many prunable weights of the saved model are 0; whether all that `mask` drops are."""
    state = load_file(folder / "model.safetensors")
    weights = {key: state[key.removesuffix("_mask")] for key in mask}
    count = sum(int((w == 0).sum()) for w in weights.values())
    return count, all((weights[key][~mask[key]] == 0).all() for key in mask)


def same(one, other, prefix=""):
    return all(torch.equal(one[name], other[name]) for name in one if name.startswith(prefix))


def outcome(folder):
    """What must be the same in two equal runs: no times and no event files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "events" not in path.parts:
            found[str(path.relative_to(folder))] = path.read_bytes()
    if "all_results.json" in found:
        scores = json.loads(found["all_results.json"])
        times = {"eval_runtime": 0, "eval_samples_per_second": 0}
        found["all_results.json"] = scores | times
    found["results.jsonl"] = [{**row, "wall_seconds": 0} for row in results(folder)]
    return found
