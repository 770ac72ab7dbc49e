"""One way of doing one thing, in its own process, which bench.py drives.

Reads numbers from stdin. For each, it works on the input of that number and prints a line of JSON:
seconds, and more figures. Two such processes, one per way, take turns.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import BertConfig

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
import baseline  # noqa: E402

from utils.config import SquadConfig, TrainingConfig  # noqa: E402
from utils.data import glue, squad_windows  # noqa: E402
from utils.data.rows import LabelledRows, Rows  # noqa: E402
from utils.data.squad import read_questions  # noqa: E402
from utils.data.text import Text, load_blocks  # noqa: E402
from utils.modeling import bert, saving  # noqa: E402
from utils.modeling.runtime import Runtime  # noqa: E402
from utils.pruning import masks  # noqa: E402
from utils.tasks.glue import GlueTask  # noqa: E402
from utils.tasks.squad import SquadTask  # noqa: E402
from utils.training.trainer import Trainer  # noqa: E402

Work = tuple[Callable[[int], object], Callable[[int], dict]]  # the timed call, its other figures
CPU = torch.device("cpu")
PEAK_SIZE, PEAK_PRODUCTS = 2048, 8  # the matrix product that measures the peak
TRAINER_STEPS = 4  # of a measurement of the Trainer, after one that warms up
EVALUATED = 256  # rows of an evaluation
SEED = 57


def config(args: argparse.Namespace, way: str = "ours", labels: int = 2) -> BertConfig:
    """Return BERT-base, or the shape of --model; the baseline uses Hugging Face's attention."""
    found = bert.load_config(args.model) if args.model else BertConfig()
    found.num_labels = labels
    found._attn_implementation = "packed_rows" if way == "ours" else "sdpa"
    return found


def masked_model(cls: Any, args: argparse.Namespace, way: str, labels: int = 2) -> Any:
    """Return the same random weights for both ways, under a mask of ones."""
    model = bert.load_model(cls, None, config(args, way, labels), SEED, "rand")
    masks.attach(model)
    return model


def batch_rows(rows: Rows, size: int, number: int) -> np.ndarray:
    """Return the row numbers of batch `number`, as an epoch would draw them."""
    permutation = np.random.default_rng(SEED).permutation(len(rows))
    return permutation[number * size : (number + 1) * size]


def step(args: argparse.Namespace, way: str) -> Work:
    """Full training steps: 32 rows of at most 128 tokens; 16 windows of at most 384 for SQuAD."""
    task, size, length = load_task(args)
    rows = task.train.rows
    labels = len(task.spec.classes) if isinstance(task, GlueTask) else 2
    model = masked_model(task.model_class, args, way, labels)
    precision = "bf16" if args.bf16 else "fp32"

    def figures(number: int) -> dict:
        lengths = rows.lengths(batch_rows(rows, size, number))
        flops = baseline.useful_flops(model.config, lengths)
        found = {"tokens": int(lengths.sum()), "padded": length * size, "flops": flops}
        return {"task": args.task, "precision": precision, **found}

    if way == "ours":
        training = TrainingConfig(
            do_train=True,
            learning_rate=2e-5,
            per_gpu_train_batch_size=size,
            bf16=args.bf16,
            no_cuda=True,
        )
        trainer = Trainer(model, task, training, Runtime(CPU, precision))
        model.train()
        return lambda k: trainer.step([batch_rows(rows, size, k)], 2e-5, (SEED, 0, k)), figures
    if way == "trainer":
        return grouped_steps(args, task, model, size)
    loop = baseline.Loop(model, precision=precision)
    make: Any = baseline.glue_batch if isinstance(task, GlueTask) else baseline.squad_batch

    def call(number: int) -> float:
        numbers = batch_rows(rows, size, number)
        width = baseline.longest(rows, numbers) if way == "longest" else length
        return loop.step(make(task.train, numbers, width))

    return call, figures


def grouped_steps(args: argparse.Namespace, task: Any, model: Any, size: int) -> Work:
    """Steps of transformers' Trainer on batches of similar length: another experiment."""
    train, keys = task.train, ["labels"]
    if not isinstance(task, GlueTask):
        keys = ["start_positions", "end_positions"]
    columns = np.atleast_2d(train.labels).tolist()
    data = []
    for row in range(len(train.rows)):
        ids, types = (values.tolist() for values in train.rows[row])
        labels = {key: column[row] for key, column in zip(keys, columns, strict=True)}
        data.append({"input_ids": ids, "token_type_ids": types, **labels})
    began, spent = (0.0, 0.0), {}

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            nonlocal began
            if state.global_step == 1:  # the first step warms up
                began = time.perf_counter(), time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            ended = time.perf_counter(), time.process_time()
            names = ("seconds", "cpu_seconds")
            for name, before, after in zip(names, began, ended, strict=True):
                spent[name] = round((after - before) / TRAINER_STEPS, 4)

    def call(number: int) -> None:
        arguments = transformers.TrainingArguments(
            str(args.cache / "trainer"),
            max_steps=1 + TRAINER_STEPS,
            per_device_train_batch_size=size,
            train_sampling_strategy="group_by_length",
            learning_rate=2e-5,
            seed=SEED + number,
            bf16=args.bf16,
            use_cpu=True,
            remove_unused_columns=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        collator = transformers.DataCollatorWithPadding(task.tokenizer)
        trainer = transformers.Trainer(
            model, arguments, collator, train_dataset=data, callbacks=[Clock()]
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()

    return call, lambda _: {
        "task": args.task,
        "precision": "bf16" if args.bf16 else "fp32",
        **spent,
    }


def product(args: argparse.Namespace) -> Work:
    """Large matrix products: the peak of this machine."""
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    matrix = torch.randn(PEAK_SIZE, PEAK_SIZE, dtype=dtype)
    precision = "bf16" if args.bf16 else "fp32"
    figures = {"task": args.task, "precision": precision, "flops": 2 * PEAK_SIZE**3 * PEAK_PRODUCTS}
    return lambda _: [matrix @ matrix for _ in range(PEAK_PRODUCTS)], lambda _: figures


def load_task(args: argparse.Namespace) -> tuple[Any, int, int]:
    """Return the task with its data, the batch size and the length."""
    tokenizer = bert.load_tokenizer(args.tokenizer, True)
    if args.task == "SQuAD":
        squad = SquadConfig(do_lower_case=True, threads=args.threads)
        file = args.data / "SQuAD" / "train-v1.1.json"
        questions = read_questions(file, v2=False)
        windows = squad_windows.load(questions, tokenizer, squad, True, str(args.cache))
        train = LabelledRows(windows.rows, np.stack([windows.start, windows.end]))
        return SquadTask(squad, tokenizer, config(args), train, None), 16, 384
    spec, folder = glue.find_spec(args.task), args.data / "glue_data" / args.task
    train, dev = (glue.load(spec, folder, split, tokenizer, 128) for split in ("train", "dev"))
    task = GlueTask(spec, tokenizer, config(args, labels=len(spec.classes)), train, {"dev": dev})
    return task, 32, 128


def evaluation(args: argparse.Namespace, way: str) -> Work:
    """Logits of 256 rows of the development set."""
    precision = "bf16" if args.bf16 else "fp32"
    task, _, length = load_task(args)
    dev = task.dev["dev"].rows
    chosen = [dev[row] for row in batch_rows(dev, EVALUATED, 0)]
    rows = baseline.make_rows(
        [list(ids) for ids, _ in chosen], [list(types) for _, types in chosen]
    )
    model = masked_model(task.model_class, args, way, len(task.spec.classes))
    figures = {"task": args.task, "tokens": int(rows.starts[-1]), "padded": length * len(rows)}
    figures |= {
        "precision": precision,
        "flops": baseline.useful_flops(model.config, rows.lengths(), training=False),
    }
    runtime = Runtime(CPU, precision)
    if way == "ours":
        return lambda _: task.predict(model, rows, runtime), lambda _: figures
    width = None if way == "longest" else length

    def call(_: int) -> np.ndarray:
        with runtime.autocast():
            return baseline.evaluate(model, rows, width)

    return call, lambda _: figures


def prune(args: argparse.Namespace, way: str) -> Work:
    """Global prunes of one model to 10, 20, 30 %; each one's added peak of resident memory."""
    model = masked_model(bert.SequenceClassifier, args, way)
    before = 0

    def call(k: int) -> None:
        nonlocal before
        before = resident("VmRSS", reset_peak=True)
        if way == "ours":
            masks.prune_to(model, (k + 1) / 10)
        else:
            baseline.prune_more(model, (k + 1) / 10, k / 10)

    return call, lambda k: {"number": k + 1, "added_bytes": resident("VmHWM") - before}


def resident(field: str, reset_peak: bool = False) -> int:
    """Return resident memory in bytes: now (VmRSS) or its peak (VmHWM), which can be reset."""
    if reset_peak:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def features(args: argparse.Namespace, way: str) -> Work:
    """The features of the task's training rows."""
    tokenizer, spec = bert.load_tokenizer(args.tokenizer, True), glue.find_spec(args.task)
    folder = args.data / "glue_data" / args.task
    return lambda _: glue.load(spec, folder, "train", tokenizer, 128), lambda _: {"task": args.task}


def text(args: argparse.Namespace, way: str) -> Work:
    """Blocks of 512 of a text: "cold" tokenizes it, "cached" opens its WordPieces; added memory."""
    tokenizer = bert.load_tokenizer(args.tokenizer, True)
    source = Text(Path(args.text), tokenizer, threads=args.threads)
    size, before = Path(args.text).stat().st_size, 0

    def call(_: int) -> None:
        nonlocal before
        before = resident("VmRSS", reset_peak=True)
        load_blocks(source, 512, overwrite_cache=way == "cold").gather(np.arange(16))

    def figures(_: int) -> dict:
        added = resident("VmHWM") - before
        return {"task": f"{size / 1e9:.1f} GB", "bytes": size, "added_bytes": added}

    return call, figures


def make(args: argparse.Namespace, way: str) -> Work:
    """Save a BERT of the measured shape with random weights and the given vocabulary."""
    tokenizer = bert.load_tokenizer(args.tokenizer, True)
    model = bert.load_model(bert.SequenceClassifier, None, config(args), SEED, "rand")
    folder = args.cache / "model"
    return lambda _: saving.save_pretrained(model, tokenizer, folder), lambda _: {}


WORK = {work.__name__: work for work in (step, evaluation, prune, features, text, make)}


def main() -> None:
    """Work on each number from stdin."""
    what, way, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    paths = {"data": Path(given["data"]), "cache": Path(given["cache"])}
    args = argparse.Namespace(**{**given, **paths})
    torch.set_num_threads(args.threads)
    call, figures = product(args) if way == "peak" else WORK[what](args, way)
    for line in sys.stdin:
        number = int(line)
        began, worked = time.perf_counter(), time.process_time()
        call(number)
        seconds = round(time.perf_counter() - began, 4)
        spent = {"seconds": seconds, "cpu_seconds": round(time.process_time() - worked, 4)}
        print(json.dumps({**spent, **figures(number)}), flush=True)


if __name__ == "__main__":
    main()
