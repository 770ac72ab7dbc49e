"""From the command line to config dataclasses, and how a program ends when something is wrong."""

import argparse
import contextlib
import dataclasses
import errno
import gc
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from utils.config import check_bounds
from utils.errors import UserError
from utils.files import is_printing_process
from utils.runs.signals import stopping_at_once

Config = TypeVar("Config")

_WRONG_PATH = {
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
    *(errno.EBUSY, errno.EINVAL, errno.ELOOP),
}
_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EACCES, errno.ENOENT, errno.EIO),
}


@contextlib.contextmanager
def imports_without_gc() -> Iterator[None]:
    """Import libraries without the garbage collector; it saves a fifth of a script's start.

    Importing torch and transformers creates a million objects, none of them garbage.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class OneLineParser(argparse.ArgumentParser):
    """argparse with one-line errors and exit code 2; help shows every default that has a value."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=_HelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2; only rank 0 prints the error."""
        _exit(message, 2)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def parse(
    config_class: type[Config], description: str | None, argv: list[str] | None = None
) -> Config:
    """Return the config that the command line describes.

    Each field of `config_class` is a group of flags (a config dataclass) or a flag itself. An
    error ends the program with one line and exit code 2.
    """
    words = sys.argv[1:] if argv is None else argv
    parser = OneLineParser(description)
    for word in words:
        if any(0xD800 <= ord(character) < 0xE000 for character in word):
            parser.error(f"{word!a} is not UTF-8; give names in UTF-8")
    _add_flags(parser, config_class, {})
    return _build(config_class, vars(parser.parse_args(words)))


def _add_flags(parser: Any, config_class: Any, changed: dict[str, Any]) -> None:
    for field in dataclasses.fields(config_class):
        kind = get_type_hints(config_class)[field.name]
        if dataclasses.is_dataclass(kind):
            section = parser.add_argument_group((kind.__doc__ or "").strip("."))
            _add_flags(section, kind, field.metadata.get("defaults", {}))
        else:
            _add_flag(parser, field, kind, changed)


def _add_flag(
    parser: Any, field: dataclasses.Field[Any], kind: Any, changed: dict[str, Any]
) -> None:
    default = changed.get(field.name, field.default)
    text, options = field.metadata["help"], dict(field.metadata["options"])
    if isinstance(default, tuple):
        default, text = default
    names = [f"--{field.name}", *options.pop("aliases", [])]
    negation = options.pop("negation", None)
    if kind is bool:
        options["action"] = "store_true"
    else:
        options["type"] = _word_type(kind)
    if default is dataclasses.MISSING:
        options["required"] = True
    else:
        options["default"] = default
    parser.add_argument(*names, help=text, **options)
    if negation:
        text = f"undo --{field.name} (ours)"
        parser.add_argument(negation, dest=field.name, action="store_false", help=text)


def _word_type(kind: Any) -> Any:
    """Return the type of a flag's words: int of `int | None`, float of `tuple[float, ...]`."""
    while get_args(kind):
        kind = get_args(kind)[0]
    return kind


def _build(config_class: Any, values: dict[str, Any]) -> Any:
    built = {}
    for field in dataclasses.fields(config_class):
        kind = get_type_hints(config_class)[field.name]
        is_group = dataclasses.is_dataclass(kind)
        built[field.name] = _build(kind, values) if is_group else values[field.name]
    config = config_class(**built)
    check_bounds(config)
    return config


def run(main: Callable[[], int | None]) -> None:
    """Run `main` and exit; errors of the user and of the machine end in one line on stderr.

    Exit codes: 2 for what the user must change, 1 for a fault after which the same command resumes.
    """
    try:
        code = main()
    except UserError as error:
        _exit(str(error), 2)
    except KeyboardInterrupt:
        code = 130
    except RuntimeError as error:
        _exit(_describe_runtime_error(error), 1)
    except OSError as error:
        if error.errno in _WRONG_PATH and error.filename:
            _exit(f"{error.filename}: {error.strerror}; give another path", 2)
        if error.errno not in _DISK:
            raise
        _exit(
            f"{error.filename or 'a file'}: {error.strerror}; what was saved before is intact: fix "
            "this, then rerun the command",
            1,
        )
    sys.exit(code)


def run_script(main: Callable[[], None]) -> None:
    """Run the main of a training script, which a signal may stop; it leaves the other ranks."""

    def resumable() -> None:
        with stopping_at_once():
            main()
        distributed = sys.modules.get("utils.training.distributed")
        if distributed:
            distributed.leave()

    run(resumable)


def _describe_runtime_error(error: RuntimeError) -> str:
    """Describe a GPU out of memory or a lost process; raise `error` again if it is neither."""
    if type(error).__name__ == "OutOfMemoryError":
        reason = ". ".join(str(error).split(". ")[:2])
        return (
            f"{reason}; free GPU memory, and the same command resumes from the last checkpoint; or "
            "halve --per_gpu_train_batch_size and double --gradient_accumulation_steps, or give "
            "--bf16, or leave --compile out"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise error
    return (
        f"process {os.environ.get('RANK')}: {str(error).splitlines()[0]}; another process was lost "
        "or disagrees, the same command resumes from the last checkpoint"
    )


def _exit(message: str, code: int) -> NoReturn:
    if code == 1 or is_printing_process():
        script = os.path.basename(sys.argv[0])
        print(f"{script}: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    raise SystemExit(code)
