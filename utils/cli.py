"""From the command line to config dataclasses, and how a program ends when something is wrong."""

import argparse
import contextlib
import dataclasses
import errno
import gc
import logging
import operator
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar, get_args

from utils import files
from utils.config import LIMITS, RunConfig
from utils.errors import UserError, first_line
from utils.runs import ranks, signals

Config = TypeVar("Config")

_ALIASES = {  # of flags, as Hugging Face's scripts and torchrun name them
    "per_gpu_train_batch_size": "--per_device_train_batch_size",
    "per_gpu_eval_batch_size": "--per_device_eval_batch_size",
    "no_cuda": "--use_cpu",
    "compile": "--torch_compile",
    "local_rank": "--local-rank",
}
_LOG_LEVELS = ("debug", "info", "warning", "error")
_WRONG_PATH = {
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
    *(errno.EBUSY, errno.EINVAL, errno.ELOOP),
}
_LOW_MEMORY = re.compile("can't (allocate memory|start new thread)")  # torch's RuntimeErrors


@contextlib.contextmanager
def imports_without_gc() -> Iterator[None]:
    """Import libraries without the garbage collector; it saves a fifth of a script's start.

    Importing torch and transformers creates a million objects, none of them garbage. A stop signal
    ends the process at once.
    """
    # C++ warnings of a lost store, with their stacks, hide the reason that is printed
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    gc.disable()
    try:
        with signals.handled_by(signals.exit_at_once):
            yield
    finally:
        gc.freeze()
        gc.enable()


class OneLineParser(argparse.ArgumentParser):
    """argparse with one-line errors and exit code 2; help shows every default that has a value."""

    def __init__(self, description: str | None, usage: str | None = None) -> None:
        super().__init__(usage=usage, description=description, formatter_class=_HelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(message)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required:
            return f"{action.help} (required)"
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def parse(
    config_class: type[Config], description: str | None, argv: list[str] | None = None
) -> Config:
    """Return the config that the command line describes.

    Each field of `config_class` is a group of flags (a config dataclass) or a flag itself. The help
    shows a script's own groups before those that every script has. Raises UserError.
    """
    words = sys.argv[1:] if argv is None else argv
    parser = OneLineParser(description, usage="%(prog)s [-h] --FLAG VALUE ...")
    for word in words:
        if any(0xD800 <= ord(character) < 0xE000 for character in word):
            parser.error(f"{word!a} is not UTF-8; give names in UTF-8")
    _add_flags(parser, config_class, {})
    parser.add_argument(
        "--log_level",
        choices=_LOG_LEVELS,
        default="info",
        help="lowest level of the messages on stderr; debug shows those of the libraries too",
    )
    values = vars(parser.parse_args(words))
    for name, alias in _ALIASES.items():
        given = {word.partition("=")[0] for word in words} & {f"--{name}", alias}
        if len(given) == 2:
            parser.error(f"--{name} and {alias} are the same flag; give one")
    if argv is None:
        files.log.setLevel(values["log_level"].upper())
    return _build(config_class, values)


def _add_flags(parser: Any, config_class: Any, changed: dict[str, Any]) -> None:
    common = {field.name for field in dataclasses.fields(RunConfig)}
    for field in sorted(dataclasses.fields(config_class), key=lambda field: field.name in common):
        kind: Any = field.type
        if dataclasses.is_dataclass(kind):
            section = parser.add_argument_group((kind.__doc__ or "").strip("."))
            _add_flags(section, kind, field.metadata.get("defaults", {}))
        else:
            _add_flag(parser, field, changed)


def _add_flag(parser: Any, field: dataclasses.Field[Any], changed: dict[str, Any]) -> None:
    kind, default = field.type, changed.get(field.name, field.default)
    text, options = field.metadata["help"], dict(field.metadata["options"])
    names = [f"--{field.name}", *filter(None, [_ALIASES.get(field.name)])]
    negation = options.pop("negation", None)
    if kind == int | float:
        kind = steps_or_share
    while get_args(kind):  # int of `int | None`, float of `tuple[float, ...] | None`
        kind = get_args(kind)[0]
    options |= {"action": "store_true"} if kind is bool else {"type": kind}
    if default is dataclasses.MISSING:
        options["required"] = True
    else:
        options["default"] = default
    parser.add_argument(*names, help=text, **options)
    if negation:
        undo: Any = {"dest": field.name, "action": "store_false", "default": argparse.SUPPRESS}
        parser.add_argument(negation, help=f"undo --{field.name} (ours)", **undo)


def steps_or_share(text: str) -> int | float:
    """Return a whole number as an int, as earlier versions recorded it, or a share below 1."""
    number = float(text)
    if number.is_integer():
        return int(number)
    if 0 < number < 1:
        return number
    raise argparse.ArgumentTypeError(f"{text} must be a number of steps or a share below 1")


def _build(config_class: Any, values: dict[str, Any]) -> Any:
    built = {}
    for field in dataclasses.fields(config_class):
        is_group = dataclasses.is_dataclass(field.type)
        built[field.name] = _build(field.type, values) if is_group else values[field.name]
    config = config_class(**built)
    _check_bounds(config)
    return config


def _check_bounds(config: Any) -> None:
    """Raise UserError for the first flag of a config dataclass outside its bounds."""
    compare = {">": operator.gt, ">=": operator.ge, "<": operator.lt}
    for field in dataclasses.fields(config):
        value, bounds = getattr(config, field.name), field.metadata.get("bounds", "")
        for number in value if isinstance(value, tuple) else (value,):
            if type(number) not in LIMITS:
                continue
            parts = (*LIMITS[type(number)], *filter(None, bounds.split(", ")))
            ends = {part[0]: part for part in parts}.values()  # the last lower and upper bound
            if not all(compare[sign](number, float(end)) for sign, end in map(str.split, ends)):
                raise UserError(f"--{field.name} {number} must be a number {', '.join(ends)}")


def run(main: Callable[[], int | None]) -> None:
    """Run `main` and exit; signals and errors of the user and of the machine end in one line.

    Exit codes: 2 for what the user must change, 1 for a fault after which the same command resumes,
    75 after a signal, 141 in silence if the reader of stdout has ended (`| head`).
    """
    _open_standard_streams()
    _log_to_stderr()
    try:
        with signals.handled_by(signals.stop_at_once):
            code, message = main() or 0, ""
            ranks.leave()
            if distributed := sys.modules.get("utils.training.distributed"):
                distributed.leave()
    except BaseException as error:
        code, message = _describe(error)
        if not code and not isinstance(error, SystemExit):  # a bug, with its traceback
            ranks.end(1, f"{type(error).__name__}: {error}")
            raise
    signals.install(signal.SIG_IGN)  # nothing is left to stop
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)  # Python flushes again at exit
            error.filename = stream.name
            code, message = (code, message) if code else _describe(error)
    sys.exit(ranks.end(code, message) if code else 0)


class _StderrHandler(logging.Handler):
    """Prints on stderr without tearing the progress bar; only rank 0 prints."""

    def emit(self, record: logging.LogRecord) -> None:
        if files.is_printing_process():
            from tqdm import tqdm

            tqdm.write(self.format(record), file=sys.stderr)


def _log_to_stderr() -> None:
    handler, log = _StderrHandler(), files.log
    line, time = "%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"
    handler.setFormatter(logging.Formatter(line, time))
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


def _open_standard_streams() -> None:
    """Replace a closed stdin, stdout or stderr by /dev/null, before a file gets its number."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


def _describe(error: BaseException) -> tuple[int, str]:  # noqa: C901, PLR0911 - one case each
    """Return exit code and message of what ends a program; code 0 for a bug."""
    text = first_line(error)
    remedy = "what was saved before is intact: fix this, then rerun the command"
    match error:
        case signals.Preempted():
            return signals.RESUME_EXIT_CODE, error.message
        case SystemExit(code=str()):
            return 1, str(error)
        case SystemExit():
            return int(error.code or 0), ""
        case UserError():
            return 2, str(error)
        case BrokenPipeError():
            return ranks.BROKEN_PIPE, "the reader of stdout has ended"
        case OSError() if error.errno in _WRONG_PATH and error.filename:
            return 2, f"{error.filename}: {error.strerror}; give another path"
        case OSError() if error.errno:
            text = f"{error.filename or 'a file or stdout'}: {error.strerror}"
        case MemoryError():
            text = f"out of memory ({text})"
        case RuntimeError() if type(error).__name__ == "OutOfMemoryError":
            text = ". ".join(text.split(". ")[:2])
            remedy = (
                "free GPU memory, and the same command resumes from the last checkpoint; or halve "
                "--per_gpu_train_batch_size and double --gradient_accumulation_steps, or give "
                "--bf16, or leave --compile out"
            )
        case RuntimeError() if ranks.several():
            remedy = (
                "another process was lost or disagrees, the same command resumes from the last "
                "checkpoint"
            )
        case _ if not isinstance(error, OSError) and not _LOW_MEMORY.search(text):
            return 0, ""
    return 1, f"{text}; {remedy}"
