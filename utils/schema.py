"""Read the JSON files of a run into dataclasses, and check every value."""

import dataclasses
import json
import math
import reprlib
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, cast, get_args, get_origin

from utils.errors import UserError

Kind = TypeVar("Kind")

_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
_NAMES |= {list: "a list", dict: "an object", NoneType: "null"}


def read(path: Path, kind: type[Kind]) -> Kind | None:
    """Return a JSON file as a dataclass, None if missing. Raises UserError naming file and key."""
    try:
        return from_json(kind, parse(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: corrupt or unreadable ({error})") from error


def parse(data: bytes) -> Any:
    """Return the value of JSON in UTF-8. Raises ValueError, in one line, for anything else."""
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text, parse_int=_number)
        if "\\u" in text:  # such an escape may be half a character, which cannot be printed
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _number(digits: str) -> float:
    return int(digits) if len(digits) <= 20 else float(digits)  # no field needs a larger integer


def from_json(kind: type[Kind], value: Any, key: str = "") -> Kind:
    """Return a parsed JSON value as `kind`: a dataclass, or a list or dict with types.

    Unknown keys of an object are ignored, since later versions may write more; null is the default
    of a field that has one. Raises ValueError that names the key that is missing or has a value of
    another type. Numbers are finite, and true is no number.
    """
    options: Any = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    for option in options:
        if option is Any or _container(option) in _kinds(value):
            return _build(option, value, key)
    wanted = " or ".join(_NAMES[_container(option)] for option in options)
    found = f"{key!r} is {reprlib.repr(value)}, not {wanted}" if key else f"not {wanted}"
    raise ValueError(found)


def _container(kind: Any) -> Any:
    return dict if dataclasses.is_dataclass(kind) else get_origin(kind) or kind


def _kinds(value: Any) -> tuple[type, ...]:
    if isinstance(value, float) and not math.isfinite(value):
        return ()
    return (int, float) if type(value) is int else (type(value),)


def _build(kind: Any, value: Any, key: str) -> Any:
    inside, prefix = get_args(kind), f"{key}." if key else ""
    if inside and isinstance(value, dict):
        return {k: from_json(inside[1], each, f"{prefix}{k}") for k, each in value.items()}
    if inside and isinstance(value, list):
        return [from_json(inside[0], each, f"{key}[{at}]") for at, each in enumerate(value)]
    is_object = dataclasses.is_dataclass(kind)
    if not is_object:
        return value
    given, fields = {}, cast(Any, dataclasses.fields(kind))
    for field in fields:
        name, required = field.name, field.default is field.default_factory  # both are MISSING
        if value.get(name) is not None or (required and name in value):
            given[name] = from_json(field.type, value[name], prefix + name)
        elif required:
            raise ValueError(f"no {prefix + name!r}")
    return kind(**given)
