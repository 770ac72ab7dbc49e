"""Training steps and prunes on a GPU: this project, the baseline, and transformers' Trainer.

All use bfloat16. No files are needed: weights, tokens and labels are random. Each measurement is a
line of JSON: medians over --repeats spans of --steps steps, after --warmup steps. The baseline and
the Trainer get prepared padded batches; this project packs its own.
"""

import argparse
import gc
import importlib.util
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import whole
from cases import BATCHES, CASES, SEED, Case, baseline
from transformers import BertConfig

from utils.config import TrainingConfig
from utils.modeling import bert, saving
from utils.modeling.runtime import Runtime
from utils.pruning import masks
from utils.training.cuda_graphs import CudaGraphs
from utils.training.trainer import Trainer

WAYS = {
    "ours": "this project",
    "captured": "with CUDA graphs, which --compile brings",
    "compiled": "with --compile: compiled layers and CUDA graphs",
    "reduce-overhead": "layers compiled with torch.compile's own CUDA graphs",
    "reduce-overhead-bucketed": "the same, with batches of few shapes",
    "baseline": "padded rows in a simple loop (baseline.py)",
    "longest": "the same loop, rows padded to the longest of the batch",
    "flash": "the same with flash_attention_2 (package flash-attn)",
    "padded-reduce-overhead": "the padded loop under torch.compile(mode='reduce-overhead')",
    "trainer": "transformers' Trainer",
}
PADDED = ("baseline", "longest", "flash", "padded-reduce-overhead")
Step = Callable[[int], object]


def our_step(case: Case, device: torch.device, way: str) -> Step:
    """Return the function that takes optimizer step `number` with this project."""
    model = case.model("packed_rows")
    if way.startswith("reduce-overhead"):
        compile_with_own_graphs(model)
    if way == "reduce-overhead-bucketed":
        train_batch = case.task.train_batch
        case.task.train_batch = lambda *args: train_batch(*args).bucketed()
    config = TrainingConfig(
        do_train=True,
        learning_rate=2e-5,
        per_gpu_train_batch_size=case.size,
        bf16=True,
        compile=way == "compiled",
    )
    trainer = Trainer(model, case.task, config, Runtime(device, "bf16"))
    if way == "captured" and device.type == "cuda":
        trainer.graphs = CudaGraphs(trainer.losses, list(trainer.model.parameters()))
    model.train()
    return lambda number: trainer.step([case.row_numbers(number)], 2e-5, (SEED, 0, number))


def compile_with_own_graphs(model: Any) -> None:
    """Compile the layers as mode "reduce-overhead" does, for any number of tokens."""
    torch._dynamo.config.recompile_limit = bert.MAX_COMPILED
    masks.for_compiled_layers(model)
    options = {"fallback_random": True, "triton.cudagraphs": True}
    for layer in model.bert.encoder.layer:
        layer.compile(dynamic=True, options=options)


def padded_step(case: Case, device: torch.device, way: str) -> Step:
    """Return the function that takes optimizer step `number` on padded rows (PADDED)."""
    model = case.model("flash_attention_2" if way == "flash" else "sdpa").to(device)
    if way == "padded-reduce-overhead":
        model.compile(mode="reduce-overhead")
    loop = baseline.Loop(model, precision="bf16")
    shorter = way in ("longest", "flash")
    batches = [case.padded(number, longest=shorter) for number in range(BATCHES)]

    def step(number: int) -> float:
        batch = batches[number % BATCHES]
        return loop.step({key: value.to(device) for key, value in batch.items()})

    return step


def wait(device: torch.device) -> None:
    """Wait until the GPU is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def clear(device: torch.device) -> None:
    """Free the memory of the measurement before, and reset the peak of memory."""
    gc.collect()  # a Trainer and its graphs refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def clocked(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of `call`, until the GPU is idle."""
    wait(device)
    began = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - began


def spans(step: Step, args: argparse.Namespace) -> list[float]:
    """Return the seconds per step of each span of steps."""
    for number in range(args.warmup):
        step(number)

    def span() -> None:
        for number in range(args.steps):
            step(number)

    return [clocked(span, args.device) / args.steps for _ in range(args.repeats)]


def trainer_spans(case: Case, args: argparse.Namespace) -> list[float]:
    """Return the same for transformers' Trainer, which has its own loop."""
    batches = [case.padded(number) for number in range(BATCHES)]
    rows = [
        {key: value[row] for key, value in batch.items()}
        for batch in batches
        for row in range(case.size)
    ]
    marks: list[float] = []

    warmup, steps, device = args.warmup, args.steps, args.device

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            after = state.global_step - warmup
            if after >= 0 and after % steps == 0:
                wait(device)
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
    return [(after - before) / args.steps for before, after in itertools.pairwise(marks)]


def measure_step(args: argparse.Namespace, name: str, way: str) -> None:
    """Measure one way on one kind of batch: rows and useful operations per second, peak memory."""
    clear(args.device)
    case = Case(name, shape(args))
    bert.set_library_defaults()  # before the next line, which it would undo
    torch.backends.cuda.enable_cudnn_sdp(way in (*PADDED, "trainer"))
    step: Step | None = None
    if way == "trainer":
        seconds = trainer_spans(case, args)
    else:
        on = args.device
        step = padded_step(case, on, way) if way in PADDED else our_step(case, on, way)
        seconds = spans(step, args)
    middle = statistics.median(seconds)
    rows, tflops = case.size / middle, case.flops() / middle / 1e12
    report(args, name, way, seconds, rows_per_second=rows, useful_tflops=tflops)
    if step and way in ("ours", "captured"):
        reason = first_wait(step, args.device)
        report(args, name, "a step that waits for the GPU", [], said=reason)


def shape(args: argparse.Namespace) -> BertConfig:
    """Return the model's configuration."""
    return BertConfig(
        num_hidden_layers=args.layers,
        hidden_size=64 * args.heads,
        num_attention_heads=args.heads,
        intermediate_size=256 * args.heads,
    )


def first_wait(step: Step, device: torch.device) -> str | None:
    """Return torch's message on the first operation of a step that waits for the GPU, if any."""
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


def measure_prunes(args: argparse.Namespace) -> None:
    """Measure our global prunes to 10, 20, ..., 50 % and our rewind.

    torch 2.11 has no baseline: its global_unstructured fails on a GPU ("indices should be either
    on cpu or on the same device").
    """
    device = args.device
    clear(device)
    model = Case("CoLA", BertConfig(num_hidden_layers=args.layers)).model("packed_rows").to(device)
    theta = masks.snapshot(model)
    prunes = [clocked(partial(masks.prune_to, model, k / 10), device) for k in range(1, 6)]
    report(args, "prune", "ours", prunes)
    rewinds = [clocked(partial(masks.rewind, model, theta), device) for _ in range(5)]
    report(args, "rewind", "ours", rewinds)


def measure_rounds(args: argparse.Namespace) -> None:
    """Measure LT_glue.py: ten rounds, 30 epochs, on rows as many and as long as RTE's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rte(folder, args)
        flags = ["--do_lower_case", "--do_train", "--do_eval", "--bf16", "--logging_steps", 0]
        flags += ["--num_train_epochs", 30, *["--no_cuda"] * (args.device.type == "cpu")]
        flags += ["--task_name", "RTE", "--data_dir", folder, "--model_name_or_path", folder]
        for way in {"ours", "compiled"} & set(args.ways):
            more = ["--compile"] if way == "compiled" else []
            found = whole.timed("LT_glue.py", *flags, *more, "--output_dir", folder / way)
            report(args, "ten rounds of RTE", way, [found["seconds"]])


def write_rte(folder: Path, args: argparse.Namespace) -> None:
    """Write a BERT with random weights and random rows like RTE's."""
    draw = np.random.default_rng(SEED)
    words = [f"w{k}" for k in range(5, BertConfig().vocab_size)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    model = bert.load_model(bert.SequenceClassifier, None, shape(args), SEED, "rand")
    saving.save_pretrained(model, bert.load_tokenizer(str(folder), True), folder)
    for split, rows in (("train", args.rte_rows), ("dev", 277)):
        lengths = draw.gamma(4, 16, (rows, 2)).astype(int) // 2 + 1
        pairs = ["\t".join(" ".join(draw.choice(words, n)) for n in pair) for pair in lengths]
        labels = draw.choice(["entailment", "not_entailment"], rows)
        lines = ["index\tsentence1\tsentence2\tlabel"]
        lines += [f"{k}\t{pairs[k]}\t{labels[k]}" for k in range(rows)]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")


def measure_products(args: argparse.Namespace, size: int = 8192) -> None:
    """Measure the peak of this GPU's matrix units: one large product in bfloat16."""
    matrix = torch.randn(size, size, device=args.device, dtype=torch.bfloat16)

    def products() -> None:
        for _ in range(20):
            torch.mm(matrix, matrix)

    found = [clocked(products, args.device) / 20 for _ in range(args.repeats + 1)][1:]
    tflops = 2 * size**3 / statistics.median(found) / 1e12
    report(args, "matrix product", "torch", found, useful_tflops=tflops)


def report(
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


def parse_args() -> argparse.Namespace:
    """Parse the command line; exit with code 2 if this machine cannot do it."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--cases", nargs="+", default=list(CASES), choices=list(CASES), help="kinds of batches")
    ways = "; ".join(f"{way}: {text}" for way, text in WAYS.items())
    add("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), help=ways)
    add("--steps", type=int, default=50, help="steps of a span")
    add("--warmup", type=int, default=2 * BATCHES, help="steps before the first span")
    add("--repeats", type=int, default=5, help="spans")
    add("--prunes", action="store_true", help="measure prunes, a rewind and the matrix peak too")
    add("--rounds", action="store_true", help="only ten rounds of IMP on random rows like RTE's")
    add("--rte_rows", type=int, default=2490, help="--rounds: training rows; few for a trial")
    add("--layers", type=int, default=12, help="layers of the model; BERT-base has 12")
    add("--heads", type=int, default=12, help="its heads, of 64 each; BERT-base has 12")
    text = "cpu only tries the script out"
    add("--device", type=torch.device, default=torch.device("cuda"), help=text)
    args = parser.parse_args()
    if args.device.type == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "gpu.py: error: this measures a GPU, and torch finds none\n")
    no_trainer = importlib.util.find_spec("accelerate") is None
    if "trainer" in args.ways and no_trainer and not args.rounds:
        remedy = "install it, or give --ways without trainer"
        parser.exit(2, f"gpu.py: error: the Trainer needs the package accelerate; {remedy}\n")
    return args


def main() -> None:
    """Measure what the flags name."""
    args = parse_args()
    if args.rounds:
        measure_rounds(args)
        return
    if args.prunes:
        measure_products(args)
        measure_prunes(args)
    for name in args.cases:
        for way in args.ways:
            measure_step(args, name, way)


if __name__ == "__main__":
    main()
