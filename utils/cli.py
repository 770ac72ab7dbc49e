"""Flags that the scripts share, each with one true sentence, and how a script ends when something is wrong."""

# ruff: noqa: E402 - the collector has to be off before the imports
import gc

gc.disable()  # importing torch and transformers makes a million objects, none of them garbage: a fifth of the time

import argparse
import dataclasses
import errno
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch

from utils import distributed, glue_data, imp, models, text
from utils.errors import UserError
from utils.glue import GlueTask
from utils.mlm import MlmTask
from utils.session import Settings
from utils.training import Recipe
from utils.watch import LossNotFinite, ending_at_once

gc.freeze()  # nor need they be looked at again
gc.enable()

WRONG_PATH = {
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.EBUSY,
    errno.EINVAL,
    errno.ELOOP,
}
ROUND = "optimizer steps of one IMP round; left out, a tenth of the run"
SAVE = "optimizer steps between two saved models; left out or 0, only the last is saved (ours)"


class DefaultsThatTell(argparse.ArgumentDefaultsHelpFormatter):
    """Help with the default of every flag that has a value by default: "None" and "False" say nothing of one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are one line on stderr, exit code 2."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=DefaultsThatTell)

    def parse_args(self, args=None, namespace=None):
        for word in sys.argv[1:]:
            if any(
                0xD800 <= ord(character) < 0xE000 for character in word
            ):  # how Python shows bytes that are not UTF-8
                self.error(f"{ascii(word)} is not UTF-8; give names in UTF-8")
        return super().parse_args(args, namespace)

    def error(self, message: str):
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise SystemExit(2)


def run(main: Callable[[], None]) -> None:
    """Run a script's main; what the user can mend ends in one line on stderr and exit code 2, without a traceback."""
    try:
        with ending_at_once():
            main()
        distributed.leave()
    except (UserError, LossNotFinite) as error:
        _end(str(error), 2)
    except torch.OutOfMemoryError as error:
        said = ". ".join(str(error).split(". ")[:2])
        _end(
            f"{said}; free some of the GPU's memory, and the same command goes on from the last checkpoint; or give half the "
            "--per_gpu_train_batch_size and twice the --gradient_accumulation_steps, or --bf16, or leave --compile out",
            1,
        )
    except RuntimeError as error:
        if distributed.size() == 1:
            raise
        _end(
            f"process {distributed.rank()}: {str(error).splitlines()[0]}; another process was lost or disagrees, "
            "the same command goes on from the last checkpoint",
            1,
        )
    except OSError as error:
        if error.errno in WRONG_PATH and error.filename:
            _end(f"{error.filename}: {error.strerror}; give another path", 2)
        if error.errno not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EFBIG,
            errno.EROFS,
            errno.EACCES,
            errno.ENOENT,
            errno.EIO,
        ):
            raise
        _end(
            f"{error.filename or 'a file'}: {error.strerror}; what was saved before is intact, "
            "mend it and run the command again",
            1,
        )


def _end(message: str, code: int) -> None:
    script = os.path.basename(sys.argv[0])
    if code == 1 or distributed.first():
        print(f"{script}: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    raise SystemExit(code)


def add_model_flags(
    parser: argparse.ArgumentParser, default: str | None = "bert-base-uncased"
) -> None:
    """Which BERT."""
    add = parser.add_argument
    add(
        "--model_type",
        default="bert",
        choices=["bert"],
        help="the architecture; the paper's is BERT",
    )
    add(
        "--model_name_or_path",
        default=default,
        help="hub name or local folder of the pre-trained BERT",
    )
    add(
        "--config_name",
        default=None,
        help="hub name or folder of another configuration than the model's own",
    )
    add(
        "--tokenizer_name",
        default=None,
        help="hub name or folder of another vocabulary than the model's own",
    )
    add(
        "--cache_dir",
        default=None,
        help="folder for downloaded models and feature caches, instead of the default places",
    )


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Where the run goes and how it goes on."""
    add = parser.add_argument
    add("--output_dir", required=True, help="folder for everything this run writes")
    add(
        "--overwrite_output_dir",
        action="store_true",
        help="replace another or a finished run in --output_dir; an unfinished run of this command goes on all the same",
    )
    add("--overwrite_cache", action="store_true", help="build the feature caches anew")
    add(
        "--should_continue",
        action="store_true",
        help="fail where this command is not finished and has no checkpoint",
    )
    add(
        "--restart",
        action="store_true",
        help="begin this run anew even where its checkpoint could go on",
    )
    add(
        "--checkpoint_minutes",
        type=float,
        default=10.0,
        help="minutes between two checkpoints to resume from (ours)",
    )


def add_training_flags(
    parser: argparse.ArgumentParser, batch: int, rate: float, epochs: float, save_steps: str
) -> None:
    """Table 1, with the task's own batch size, learning rate and epochs as defaults (SQuAD: the released commands' epochs).

    `save_steps` explains that flag.
    """
    add = parser.add_argument
    add("--do_train", action="store_true", help="train")
    add(
        "--do_eval",
        action="store_true",
        help="evaluate: the trained model, or without --do_train the model given",
    )
    add(
        "--evaluate_during_training",
        action="store_true",
        help="with --do_eval: evaluate every --logging_steps steps as well",
    )
    add(
        "--eval_all_checkpoints",
        action="store_true",
        help="evaluate every model saved in --output_dir; in training, when it is saved",
    )
    add(
        "--per_gpu_train_batch_size",
        type=int,
        default=batch,
        help="training rows in a batch, per process",
    )
    add(
        "--per_gpu_eval_batch_size",
        type=int,
        default=8,
        help="rows in a batch of MLM evaluation with --as_released; every other evaluation sizes its batches by tokens",
    )
    add(
        "--gradient_accumulation_steps",
        type=int,
        default=1,
        help="batches whose gradients make one optimizer step",
    )
    add(
        "--learning_rate",
        type=float,
        default=rate,
        help="initial learning rate of AdamW, decaying linearly to zero",
    )
    add(
        "--weight_decay",
        type=float,
        default=0.0,
        help="AdamW's weight decay, not applied to biases and LayerNorm",
    )
    add("--adam_epsilon", type=float, default=1e-8, help="AdamW's epsilon")
    add("--max_grad_norm", type=float, default=1.0, help="norm to which gradients are clipped")
    add("--warmup_steps", type=int, default=0, help="optimizer steps of linear warm-up")
    add(
        "--num_train_epochs",
        type=float,
        default=epochs,
        help="passes over the training data, in all rounds together (of steps with several batches, whole ones only)",
    )
    add(
        "--max_steps",
        type=int,
        default=-1,
        help="optimizer steps in all, instead of --num_train_epochs, if positive; IMP takes those of whole rounds it needs",
    )
    add(
        "--logging_steps",
        type=int,
        default=500,
        help="optimizer steps between two logged points (ours; 0: none)",
    )
    add("--save_steps", type=int, default=None, help=save_steps)
    add(
        "--save_total_limit",
        type=int,
        default=None,
        help="keep the model files of only so many checkpoints (0: of none); masks stay",
    )
    add("--seed", type=int, default=42, help="seed of every random draw (ours: 42)")
    add("--no_cuda", action="store_true", help="stay on the CPU")
    add(
        "--fp16",
        action="store_true",
        help="mixed precision with 16-bit floats and loss scaling (GPU)",
    )
    add("--bf16", action="store_true", help="mixed precision with bfloat16 (ours)")
    add(
        "--tf32",
        action="store_true",
        help="float32 matrix products with TensorFloat-32's shorter fractions (GPU; ours)",
    )
    add(
        "--compile",
        action="store_true",
        default=False,
        help="compile the encoder's layers, which takes a minute, and on one GPU replay CUDA graphs: for long runs (ours)",
    )
    add(
        "--no_compile",
        dest="compile",
        action="store_false",
        default=argparse.SUPPRESS,
        help="do not compile, which is the default (ours)",
    )
    add(
        "--as_released",
        action="store_true",
        help="do as the released code does where it differs from the paper (the README's Fidelity table)",
    )
    add(
        "--local_rank", "--local-rank", type=int, default=-1, help="set by torchrun; leave it alone"
    )


def add_ticket_flags(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Which subnetwork is trained, from which weights."""
    add = parser.add_argument
    add(
        "--dir",
        dest="init",
        choices=["pre", "rand"],
        required=required,
        default=None,
        help="start from the pre-trained weights, or from weights drawn anew by --seed",
    )
    add(
        "--mask_dir",
        default=None,
        help="mask file (or exported ticket) of the subnetwork; left out, the dense model",
    )
    add(
        "--weight_pertub",
        default=None,
        help="file of encoder weights to start from, such as pertub_weight.py writes",
    )


def add_glue_flags(parser: argparse.ArgumentParser) -> None:
    """Which GLUE task."""
    add = parser.add_argument
    add(
        "--task_name",
        required=True,
        help="the GLUE task: CoLA, MNLI, MNLI-MM, MRPC, QNLI, QQP, RTE, SST-2, STS-B or WNLI",
    )
    add(
        "--data_dir",
        required=True,
        help="folder with the task's files as GLUE names them, train.tsv and dev.tsv",
    )
    add(
        "--max_seq_length",
        type=int,
        default=128,
        help="WordPieces at most in a row, [CLS] and [SEP] included",
    )
    add("--do_lower_case", action="store_true", help="lower-case the text, as uncased models need")


def add_squad_flags(parser: argparse.ArgumentParser) -> None:
    """Which questions, and how they are cut into windows and answered."""
    add = parser.add_argument
    add("--train_file", default=None, help="SQuAD JSON to train on")
    add("--predict_file", default=None, help="SQuAD JSON to evaluate on")
    add(
        "--max_seq_length",
        type=int,
        default=384,
        help="WordPieces at most in a window, question included",
    )
    add(
        "--doc_stride",
        type=int,
        default=128,
        help="WordPieces between the starts of two windows of one context",
    )
    add(
        "--max_query_length",
        type=int,
        default=64,
        help="WordPieces at most of a question; the rest is cut",
    )
    add("--do_lower_case", action="store_true", help="lower-case the text, as uncased models need")
    add(
        "--n_best_size",
        type=int,
        default=20,
        help="answers in the n-best list, and logits looked at for it",
    )
    add("--max_answer_length", type=int, default=30, help="WordPieces at most in an answer")
    add(
        "--version_2_with_negative",
        action="store_true",
        help="SQuAD 2.0: some questions have no answer",
    )
    add(
        "--null_score_diff_threshold",
        type=float,
        default=0.0,
        help="SQuAD 2.0: no answer where its score is ahead of the best answer's by more than this",
    )
    add(
        "--verbose_logging",
        action="store_true",
        help="tell of answers widened to whole words and of questions without any",
    )
    add(
        "--threads",
        type=int,
        default=os.cpu_count() or 1,
        help="threads of the tokenizer (ours: all cores)",
    )


def add_mlm_flags(parser: argparse.ArgumentParser) -> None:
    """Which text, and how it is cut and masked."""
    add = parser.add_argument
    add("--train_data_file", default=None, help="UTF-8 text to train on, of any size")
    add("--eval_data_file", default=None, help="UTF-8 text to evaluate on")
    add(
        "--mlm",
        action="store_true",
        help="masked language modelling, the only training that BERT has; must be given",
    )
    add("--mlm_probability", type=float, default=0.15, help="fraction of the tokens to predict")
    add(
        "--block_size",
        type=int,
        default=None,
        help="WordPieces in a block, [CLS] and [SEP] included; left out, 512 or the model's positions if fewer",
    )
    add(
        "--line_by_line",
        action="store_true",
        help="make each line a row of its own instead of cutting one stream",
    )
    add(
        "--threads",
        type=int,
        default=os.cpu_count() or 1,
        help="threads of the tokenizer (ours: all cores)",
    )


def check_mlm_flags(args: argparse.Namespace) -> None:
    """Raises UserError naming the MLM flag that is missing or wrong."""
    if not args.mlm:
        raise UserError("BERT is trained on masked language modelling: give --mlm")
    if not 0 < args.mlm_probability < 1:
        raise UserError(f"--mlm_probability {args.mlm_probability} must lie between 0 and 1")
    for flag, file in (("do_train", "train_data_file"), ("do_eval", "eval_data_file")):
        if getattr(args, flag) and getattr(args, file) is None:
            raise UserError(f"--{flag} needs --{file}, the text to read")
    if args.model_name_or_path is None and not (args.config_name and args.tokenizer_name):
        raise UserError(
            "give --model_name_or_path, or --config_name and --tokenizer_name to start from random weights"
        )


def mlm_source(args: argparse.Namespace):
    """Configuration and tokenizer of the MLM scripts, which may come without a model."""
    config = models.load_config(args.config_name or args.model_name_or_path, args.cache_dir)
    tokenizer = models.load_tokenizer(
        args.tokenizer_name or args.model_name_or_path, None, args.cache_dir
    )
    models.check_vocabulary(config, tokenizer)
    return config, tokenizer


def read_text(args: argparse.Namespace, task: MlmTask, config) -> None:
    """Read the texts that the flags ask for into `task`."""
    size = min(512, config.max_position_embeddings) if args.block_size is None else args.block_size
    models.check_length(config, "--block_size", size)

    def load(file: str):
        return text.load_blocks(
            file,
            task.tokenizer,
            size,
            args.line_by_line,
            args.cache_dir,
            args.overwrite_cache,
            args.threads,
        )

    if args.do_train:
        task.train = load(args.train_data_file)
    if args.do_eval:
        task.dev = load(args.eval_data_file)


def read_glue(args: argparse.Namespace):
    """Configuration, tokenizer and task of the GLUE scripts, its data read."""
    spec = glue_data.find_spec(args.task_name)
    task = GlueTask(spec, args.max_seq_length if args.as_released else None)
    source = args.model_name_or_path
    config = models.load_config(args.config_name or source, args.cache_dir, num_labels=task.labels)
    models.check_length(config, "--max_seq_length", args.max_seq_length)
    tokenizer = models.load_tokenizer(
        args.tokenizer_name or source, args.do_lower_case, args.cache_dir
    )
    models.check_vocabulary(config, tokenizer)
    task.read(
        Path(args.data_dir),
        tokenizer,
        args.max_seq_length,
        train=args.do_train,
        dev=args.do_eval,
        cache_dir=args.cache_dir and Path(args.cache_dir),
        overwrite_cache=args.overwrite_cache,
    )
    return config, tokenizer, task


def add_imp_flags(parser: argparse.ArgumentParser) -> None:
    """How Algorithm 1 goes."""
    add = parser.add_argument
    add(
        "--sparsities",
        type=float,
        nargs="+",
        default=None,
        metavar="S",
        help="sparsities after the rounds, instead of 0.1 0.2 ... 0.9",
    )
    add(
        "--rewind_steps",
        type=int,
        default=0,
        help="i: rewind to the weights after i steps of training (theta_i)",
    )
    add(
        "--no_rewind",
        action="store_true",
        help="standard pruning: go on from each round's final weights (Table 3)",
    )


def check_seed(seed: int) -> None:
    """Raises UserError for a seed that not every generator takes."""
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed {seed} must be at least 0 and below 2**63")


def check_training_flags(args: argparse.Namespace) -> None:
    """Raises UserError naming a flag whose value cannot be."""
    if not (args.do_train or args.do_eval):
        raise UserError("nothing to do: give --do_train, --do_eval or both")
    for flag in (
        "per_gpu_train_batch_size",
        "per_gpu_eval_batch_size",
        "gradient_accumulation_steps",
    ):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag} {getattr(args, flag)} must be at least 1")
    for flag in ("learning_rate", "num_train_epochs", "max_grad_norm", "adam_epsilon"):
        if not 0 < getattr(args, flag) < float("inf"):
            raise UserError(f"--{flag} {getattr(args, flag)} must be a number above 0")
    for flag in (
        "weight_decay",
        "warmup_steps",
        "logging_steps",
        "save_steps",
        "checkpoint_minutes",
    ):
        if not (getattr(args, flag) or 0) >= 0:
            raise UserError(f"--{flag} {getattr(args, flag)} must be a number of at least 0")
    check_seed(args.seed)
    if getattr(args, "threads", 1) < 1:
        raise UserError(f"--threads {args.threads} must be at least 1")
    if args.should_continue and args.restart:
        raise UserError("--should_continue and --restart exclude each other; give one")
    if args.save_total_limit is not None and args.save_total_limit < 0:
        raise UserError(
            f"--save_total_limit {args.save_total_limit} must be 0 or more; left out, every model is kept"
        )
    if args.fp16 and args.bf16:
        raise UserError("--fp16 and --bf16 exclude each other; give one")


def recipe(args: argparse.Namespace) -> Recipe:
    """The hyper-parameters that the flags give."""
    precision = "fp16" if args.fp16 else "bf16" if args.bf16 else "fp32"
    return Recipe(
        args.learning_rate,
        batch_size(args),
        args.gradient_accumulation_steps,
        args.adam_epsilon,
        args.weight_decay,
        args.max_grad_norm,
        args.warmup_steps,
        precision,
        fused=not args.as_released,
    )


def batch_size(args: argparse.Namespace) -> int:
    """Training rows in a batch over all processes."""
    return args.per_gpu_train_batch_size * distributed.size()


def total_steps(max_steps: int, epochs: float, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run: exactly --max_steps if positive, else the epochs'."""
    return max_steps if max_steps > 0 else max(1, round(epochs * steps_per_epoch))


def arguments(args: argparse.Namespace) -> dict:
    """Every flag's value, and the number of processes where there are several: they change the batches."""
    several = {"processes": distributed.size()} if distributed.size() > 1 else {}
    return dict(sorted({**vars(args), **several}.items()))


def settings(args: argparse.Namespace) -> Settings:
    """How the run goes, from the flags that all training scripts share."""
    device = distributed.join(args.no_cuda)  # before the batch size, which counts the processes
    if args.fp16 and device.type == "cpu":
        raise UserError("--fp16 needs a GPU; leave it out, or use --bf16")
    if args.tf32 and device.type == "cpu":
        raise UserError("--tf32 needs a GPU; leave it out")
    if args.tf32:
        torch.set_float32_matmul_precision("high")
    if args.compile:
        check_compiler(device)
    return Settings(
        script=os.path.basename(sys.argv[0]),
        output_dir=args.output_dir,
        arguments=arguments(args),
        overwrite=args.overwrite_output_dir,
        insist=args.should_continue,
        restart=args.restart,
        recipe=recipe(args),
        device=device,
        seed=args.seed,
        logging_steps=args.logging_steps,
        checkpoint_minutes=args.checkpoint_minutes,
        evaluate=args.do_eval,
        evaluate_during_training=args.evaluate_during_training,
        evaluate_checkpoints=args.eval_all_checkpoints,
        keep_models=args.save_total_limit,
        compiled=args.compile,
    )


def check_compiler(device: torch.device) -> None:
    """Raises UserError if torch.compile lacks what it works with: a compiler of C++, of C for a GPU, and Python's header."""
    on_gpu = device.type == "cuda"
    language, variable, usual = (
        ("C", "CC", ("gcc", "clang")) if on_gpu else ("C++", "CXX", ("g++", "clang++"))
    )
    if not any(map(shutil.which, (os.environ.get(variable, usual[0]), *usual))):
        raise UserError(
            f"--compile needs a {language} compiler such as {usual[0]}; install one, or leave the flag out"
        )
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.exists():
        raise UserError(
            f"--compile needs {header}; install Python's development files, or leave the flag out"
        )


def policy(args: argparse.Namespace, total: int, **released: object) -> imp.Policy:
    """The rounds of IMP that the flags ask for; `released` is what --as_released changes for this task.

    Raises UserError where they contradict each other.
    """
    if args.no_rewind and args.rewind_steps:
        raise UserError("--no_rewind and --rewind_steps exclude each other; give one")
    if args.no_rewind and args.as_released and released["rewind"] != "none":
        raise UserError("--as_released rewinds, as the released code does; leave out --no_rewind")
    sparsities = tuple(args.sparsities or imp.SPARSITIES)
    rewind = "none" if args.no_rewind else "theta_i"
    round_steps = total // 10 if args.save_steps is None else args.save_steps
    made = imp.Policy(sparsities, round_steps, total, args.rewind_steps, rewind)
    if args.as_released:
        made = dataclasses.replace(
            made,
            sparsities=tuple(args.sparsities or (*imp.SPARSITIES, 1.0)),
            last_round=False,
            schedule_over_run=True,
            data_run_on=True,
            **released,
        )
    imp.check_policy(made)
    return made
