"""One way of doing one thing, in a process of its own that bench.py drives: optimizer steps, evaluation, prunes, features.

Reads numbers from stdin; for each it works on the input of that number and prints one line of JSON: seconds, and what else
there is to tell. Two such processes, one per way, take turns.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
import plain  # noqa: E402

from utils import glue_data, masks, models, squad_data  # noqa: E402
from utils.glue import GlueTask  # noqa: E402
from utils.rows import Rows  # noqa: E402
from utils.squad import AnswerOptions, SquadTask  # noqa: E402
from utils.text import load_blocks  # noqa: E402
from utils.training import Recipe, Trainer  # noqa: E402

Work = tuple[
    Callable[[int], object], Callable[[int], dict]
]  # what is timed, and what is told of input k beside the time
CPU = torch.device("cpu")
EVALUATED = 256  # rows of an evaluation
SEED = 57


def config(args: argparse.Namespace, way: str = "ours", labels: int = 2) -> BertConfig:
    """BERT-base, or the shape of --model; Hugging Face's own attention for the plain way."""
    found = (
        models.load_config(args.model, num_labels=labels)
        if args.model
        else BertConfig(num_labels=labels)
    )
    found._attn_implementation = "packed_rows" if way == "ours" else "sdpa"
    return found


def masked_model(cls, args: argparse.Namespace, way: str, labels: int = 2) -> torch.nn.Module:
    """The same random weights for both ways, under a mask of ones."""
    model = models.load_model(cls, None, config(args, way, labels), SEED, "rand")
    masks.attach(model)
    return model


def taken(rows: Rows, size: int, number: int) -> np.ndarray:
    """Row numbers of batch `number`, as an epoch would draw them."""
    return np.random.default_rng(SEED).permutation(len(rows))[number * size : (number + 1) * size]


def telling(task: str, rows: Rows, size: int, padded: int) -> Callable[[int], dict]:
    """The figures of batch k: task, its tokens, and its tokens with padding."""
    return lambda k: {
        "task": task,
        "tokens": int(rows.lengths()[taken(rows, size, k)].sum()),
        "padded": padded * size,
    }


def step(args: argparse.Namespace, way: str) -> Work:
    """Full training steps on batches of 32 real rows, cut at 128 tokens; of 16 windows cut at 384 for SQuAD."""
    task, rows, size, length = squad(args) if args.task == "SQuAD" else glue(args)
    model = masked_model(task.model_class, args, way, getattr(task, "labels", 2))
    precision, figures = "bf16" if args.bf16 else "fp32", telling(args.task, rows, size, length)

    def tell(k: int) -> dict:
        return {**figures(k), "precision": precision}

    if way == "ours":
        trainer = Trainer(model, task, Recipe(2e-5, size, precision=precision), CPU)
        model.train()
        return lambda k: trainer.step([taken(rows, size, k)], 2e-5, (SEED, 0, k)), tell
    loop = plain.Loop(model, precision=precision)
    return lambda k: loop.step(plain_batch(task, taken(rows, size, k), length)), tell


def glue(args: argparse.Namespace) -> tuple[GlueTask, Rows, int, int]:
    """A GLUE task with its data read, its training rows, the batch size and the length."""
    task = GlueTask(glue_data.find_spec(args.task))
    tokenizer = models.load_tokenizer(args.tokenizer, True)
    task.read(args.data / "glue_data" / args.task, tokenizer, 128, True, True, cache_dir=args.cache)
    return task, task.train[0], 32, 128


def squad(args: argparse.Namespace) -> tuple[SquadTask, Rows, int, int]:
    """SQuAD with its data read, its training windows, the batch size and the length."""
    task = SquadTask(AnswerOptions())
    tokenizer = models.load_tokenizer(args.tokenizer, True)
    task.train = squad_data.load(
        args.data / "SQuAD" / "train-v1.1.json",
        False,
        True,
        tokenizer,
        384,
        128,
        64,
        args.threads,
        args.cache,
    )[1]
    return task, task.train.rows, 16, 384


def plain_batch(task, indices: np.ndarray, length: int) -> dict[str, torch.Tensor]:
    """The batch as Hugging Face's model takes it."""
    make = plain.glue_batch if isinstance(task, GlueTask) else plain.squad_batch
    return make(task.train, indices, length)


def evaluation(args: argparse.Namespace, way: str) -> Work:
    """Logits of 256 rows of the development set."""
    task = glue(args)[0]
    every = task.dev["dev"][0]
    picked = taken(every, EVALUATED, 0)
    rows = Rows.from_lists(*map(list, zip(*(map(list, every[row]) for row in picked), strict=True)))
    model = masked_model(task.model_class, args, way, task.labels)
    figures = {"task": args.task, "tokens": int(rows.starts[-1]), "padded": 128 * len(rows)}
    if way == "ours":
        return lambda _: task.predict(model, rows, CPU), lambda _: figures
    return lambda _: plain.evaluate(model, rows, 128), lambda _: figures


def prune(args: argparse.Namespace, way: str) -> Work:
    """Global prunes of one model to 10, 20, 30 %; added peak of resident memory of each."""
    model = masked_model(models.SequenceClassifier, args, way)
    before = 0

    def call(k: int) -> None:
        nonlocal before
        before = resident("VmRSS", reset_peak=True)
        if way == "ours":
            masks.prune_to(model, (k + 1) / 10)
        else:
            plain.prune_more(model, (k + 1) / 10, k / 10)

    return call, lambda k: {"number": k + 1, "added_bytes": resident("VmHWM") - before}


def resident(field: str, reset_peak: bool = False) -> int:
    """Resident memory of this process in bytes: now (VmRSS) or its peak (VmHWM), which can be set back first."""
    if reset_peak:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def features(args: argparse.Namespace, way: str) -> Work:
    """The features of the task's training rows: "cold" makes them, "cached" reads them."""
    tokenizer, spec = models.load_tokenizer(args.tokenizer, True), glue_data.find_spec(args.task)
    folder = args.data / "glue_data" / args.task

    def call(_: int) -> None:
        glue_data.load(spec, folder, "train", tokenizer, 128, args.cache, way == "cold")

    return call, lambda _: {"task": args.task}


def text(args: argparse.Namespace, way: str) -> Work:
    """Blocks of 512 of the text `args.text`: "cold" tokenizes it, "cached" opens its WordPieces; added peak of memory."""
    tokenizer, size, before = (
        models.load_tokenizer(args.tokenizer, True),
        Path(args.text).stat().st_size,
        0,
    )

    def call(_: int) -> None:
        nonlocal before
        before = resident("VmRSS", reset_peak=True)
        blocks = load_blocks(
            args.text, tokenizer, 512, overwrite_cache=way == "cold", threads=args.threads
        )
        blocks.gather(np.arange(16))

    return call, lambda _: {
        "task": f"{size / 1e9:.1f} GB",
        "bytes": size,
        "added_bytes": resident("VmHWM") - before,
    }


def make(args: argparse.Namespace, way: str) -> Work:
    """Save a BERT of the measured shape with random weights and the given vocabulary as a model folder."""
    tokenizer = models.load_tokenizer(args.tokenizer, True)
    model = models.load_model(models.SequenceClassifier, None, config(args), SEED, "rand")
    return lambda _: models.save_pretrained(model, tokenizer, args.cache / "model"), lambda _: {}


def main() -> None:
    what, way, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    args = argparse.Namespace(
        **{**given, "data": Path(given["data"]), "cache": Path(given["cache"])}
    )
    torch.set_num_threads(args.threads)
    call, tell = globals()[what](args, way)
    for line in sys.stdin:
        number = int(line)
        began, worked = time.perf_counter(), time.process_time()
        call(number)
        spent = {
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - worked,
        }
        print(
            json.dumps({**{key: round(value, 4) for key, value in spent.items()}, **tell(number)}),
            flush=True,
        )


if __name__ == "__main__":
    main()
