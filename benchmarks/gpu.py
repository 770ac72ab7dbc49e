"""Training steps and prunes on a GPU: this project beside the plain way (plain.py) and transformers' Trainer, all in bfloat16.

Needs no files: weights, tokens and labels are random. Prints one line of JSON a measurement: medians over --repeats spans
of --steps steps each, after --warmup steps. The other ways get their padded batches ready made; ours packs its own.
"""

import argparse
import gc
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
import whole
from cases import BATCHES, CASES, SEED, Case, models, plain
from transformers import BertConfig

from utils import masks
from utils.training import Recipe, Trainer

WAYS = (
    "ours",
    "recorded",
    "compiled",
    "plain",
    "trainer",
)  # ours; replayed CUDA graphs; --compile, which is both; two others


def our_step(case: Case, device: torch.device, way: str) -> Callable[[int], object]:
    """A step of this project."""
    model = case.model("packed_rows")
    if way == "compiled":
        models.compile_layers(model)
    recorded = way != "ours" and device.type == "cuda"
    trainer = Trainer(model, case.task, Recipe(2e-5, case.size, precision="bf16"), device, recorded)
    model.train()
    return lambda number: trainer.step([case.taken(number)], 2e-5, (SEED, 0, number))


def plain_step(case: Case, device: torch.device) -> Callable[[int], object]:
    """A step of the plain loop."""
    loop = plain.Loop(case.model("sdpa").to(device), precision="bf16")
    batches = [case.padded(number) for number in range(BATCHES)]
    return lambda number: loop.step(
        {key: value.to(device) for key, value in batches[number % BATCHES].items()}
    )


def wait(device: torch.device) -> None:
    """Until the GPU has done all."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def clear(device: torch.device) -> None:
    """Free what the measurement before has left, and count the peak of memory anew."""
    gc.collect()  # a Trainer and its recordings refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def clocked(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that `call` and what it leaves to the GPU take."""
    wait(device)
    began = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - began


def spans(step: Callable[[int], object], args: argparse.Namespace) -> list[float]:
    """Seconds a step, in each span of steps."""
    for number in range(args.warmup):
        step(number)
    return [
        clocked(lambda: [step(number) for number in range(args.steps)], args.device) / args.steps
        for _ in range(args.repeats)
    ]


def trainer_spans(case: Case, args: argparse.Namespace) -> list[float]:
    """The same of transformers' Trainer, which has a loop of its own."""
    batches, marks = [case.padded(number) for number in range(BATCHES)], []
    rows = [
        {key: value[row] for key, value in batch.items()}
        for batch in batches
        for row in range(case.size)
    ]

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, arguments, state, control, **_):
            if (
                state.global_step >= args.warmup
                and (state.global_step - args.warmup) % args.steps == 0
            ):
                wait(args.device)
                marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            max_steps=args.warmup + args.repeats * args.steps,
            per_device_train_batch_size=case.size,
            bf16=True,
            learning_rate=2e-5,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=args.device.type == "cpu",
        )
        trainer = transformers.Trainer(
            case.model("sdpa"), arguments, train_dataset=rows, callbacks=[Clock()]
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return [(after - before) / args.steps for before, after in zip(marks, marks[1:], strict=False)]


def measure_step(args: argparse.Namespace, name: str, way: str) -> None:
    """One way of training on one kind of batch: steps and rows a second, useful operations a second, peak memory."""
    clear(args.device)
    case = Case(name, shape(args))
    torch.backends.cuda.enable_cudnn_sdp(way in ("plain", "trainer"))  # models.py turns it off
    if way == "trainer":
        found = trainer_spans(case, args)
    else:
        step = plain_step(case, args.device) if way == "plain" else our_step(case, args.device, way)
        found = spans(step, args)
    middle = statistics.median(found)
    say(
        args,
        name,
        way,
        found,
        rows_per_second=case.size / middle,
        useful_tflops=case.flops() / middle / 1e12,
    )
    if way in ("ours", "recorded"):
        say(args, name, "a step that waits for the GPU", [], said=waits(step, args.device))


def shape(args: argparse.Namespace) -> BertConfig:
    """The model's."""
    return BertConfig(
        num_hidden_layers=args.layers,
        hidden_size=64 * args.heads,
        num_attention_heads=args.heads,
        intermediate_size=256 * args.heads,
    )


def waits(step: Callable[[int], object], device: torch.device) -> str | None:
    """What torch says of the first thing in a step that waits for the GPU, if any does."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        step(0)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return str(error).splitlines()[0]
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return None


def measure_prunes(args: argparse.Namespace, way: str) -> None:
    """Global prunes to 10, 20, ..., 50 %, and ours a rewind."""
    clear(args.device)
    model = (
        Case("CoLA", BertConfig(num_hidden_layers=args.layers)).model("packed_rows").to(args.device)
    )
    theta = masks.snapshot(model)
    prune = {
        "ours": lambda after, _: masks.prune_to(model, after),
        "plain": lambda after, before: plain.prune_more(model, after, before),
    }[way]
    say(
        args,
        "prune",
        way,
        [clocked(lambda k=k: prune(k / 10, (k - 1) / 10), args.device) for k in range(1, 6)],
    )
    if way == "ours":
        say(
            args,
            "rewind",
            way,
            [clocked(lambda: masks.rewind(model, theta), args.device) for _ in range(5)],
        )


def measure_rounds(args: argparse.Namespace) -> None:
    """Ten rounds of LT_glue.py on rows as many and as long as RTE's, 30 epochs in all: the whole process."""
    with tempfile.TemporaryDirectory() as name:
        folder, draw = Path(name), np.random.default_rng(SEED)
        words = [
            "[PAD]",
            "[UNK]",
            "[CLS]",
            "[SEP]",
            "[MASK]",
            *(f"w{k}" for k in range(5, BertConfig().vocab_size)),
        ]
        (folder / "vocab.txt").write_text("\n".join(words))
        model = models.load_model(models.SequenceClassifier, None, shape(args), SEED, "rand")
        models.save_pretrained(model, models.load_tokenizer(name, True), folder)
        for part, rows in (("train", args.rte_rows), ("dev", 277)):
            lengths = draw.gamma(4, 16, (rows, 2)).astype(int) // 2 + 1
            lines = [
                "\t".join(" ".join(draw.choice(words[5:], n)) for n in pair) for pair in lengths
            ]
            labels = draw.choice(["entailment", "not_entailment"], rows)
            table = [
                f"{k}\t{line}\t{label}\n"
                for k, (line, label) in enumerate(zip(lines, labels, strict=True))
            ]
            (folder / f"{part}.tsv").write_text(
                "index\tsentence1\tsentence2\tlabel\n" + "".join(table)
            )
        command = [
            "LT_glue.py",
            "--task_name",
            "RTE",
            "--data_dir",
            folder,
            "--model_name_or_path",
            folder,
            "--do_lower_case",
            "--do_train",
            "--do_eval",
            "--num_train_epochs",
            30,
            "--bf16",
            "--logging_steps",
            0,
        ]
        for way, flags in (("ours", []), ("compiled", ["--compile"])):
            found = whole.timed(
                *command,
                *flags,
                "--output_dir",
                folder / way,
                *["--no_cuda"] * (args.device.type == "cpu"),
            )
            say(args, "ten rounds of RTE", way, [found["seconds"]])


def measure_products(args: argparse.Namespace, size: int = 8192) -> None:
    """The matrix peak that this GPU reaches: one large product in bfloat16."""
    matrix = torch.randn(size, size, device=args.device, dtype=torch.bfloat16)
    found = [
        clocked(lambda: [matrix @ matrix for _ in range(20)], args.device) / 20
        for _ in range(args.repeats + 1)
    ][1:]
    say(
        args,
        "matrix product",
        "torch",
        found,
        useful_tflops=2 * size**3 / statistics.median(found) / 1e12,
    )


def say(
    args: argparse.Namespace, what: str, way: str, seconds: list[float], **more: object
) -> None:
    """Print a measurement."""
    on_gpu = args.device.type == "cuda"
    row = {
        "what": what,
        "way": way,
        "seconds": statistics.median(seconds) if seconds else None,
        "all": seconds,
        **more,
        "peak_bytes": torch.cuda.max_memory_reserved() if on_gpu else None,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "transformers": transformers.__version__,
    }
    print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--cases", nargs="+", default=list(CASES), choices=list(CASES), help="kinds of batches")
    add("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="ways of training on them")
    add("--steps", type=int, default=50, help="steps of a span")
    add("--warmup", type=int, default=2 * BATCHES, help="steps before the first span")
    add("--repeats", type=int, default=5, help="spans")
    add(
        "--rounds",
        action="store_true",
        help="ten rounds of IMP on random rows like RTE's, and nothing else",
    )
    add("--rte_rows", type=int, default=2490, help="training rows of these; fewer try it out")
    add("--layers", type=int, default=12, help="layers of the model; BERT-base has 12")
    add("--heads", type=int, default=12, help="its heads, of 64 each; BERT-base has 12")
    add(
        "--device",
        type=torch.device,
        default=torch.device("cuda"),
        help="cpu only tries the script out",
    )
    args = parser.parse_args()
    if args.device.type == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "gpu.py: error: this measures a GPU, and torch finds none\n")
    if args.rounds:
        measure_rounds(args)
        return
    if "trainer" in args.ways and importlib.util.find_spec("accelerate") is None:
        parser.exit(
            2,
            "gpu.py: error: the Trainer needs the package accelerate; install it, or give --ways without trainer\n",
        )
    if args.device.type == "cuda":
        measure_products(args)
        for way in ("ours", "plain"):
            measure_prunes(args, way)
    for name in args.cases:
        for way in args.ways:
            measure_step(args, name, way)


if __name__ == "__main__":
    main()
