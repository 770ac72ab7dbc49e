"""From JSON to dataclasses: one reader for every JSON file of a run, which trusts nothing in it."""

import dataclasses
import functools
import json
import reprlib
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from utils.errors import UserError

Kind = TypeVar("Kind")

_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
_NAMES |= {list: "a list", tuple: "a list", dict: "an object", NoneType: "null"}


def read(path: Path, kind: type[Kind]) -> Kind | None:
    """Return the JSON file `path` as the dataclass `kind`, None if there is no such file.

    Raises UserError that names the file and the wrong key if it is unreadable or corrupt.
    """
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
        value = json.loads(text, object_pairs_hook=_unique, parse_int=_int64)
        if "\\u" in text:  # such an escape may be half a character, which cannot be printed
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key occurs twice in an object")
    return value


def _int64(digits: str) -> int:
    value = int(digits)
    if abs(value) >= 2**63:
        raise ValueError(f"an integer of {len(digits)} digits is too large")
    return value


def from_json(kind: type[Kind], value: Any, key: str = "") -> Kind:
    """Return a parsed JSON value as `kind`: a dataclass, or a list or dict with types.

    Unknown keys of an object are ignored: later versions may write more. Raises ValueError that
    names the key that is missing or has a value of another type; numbers are finite, and no bool.
    """
    options: Any = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    for option in options:
        if _matches(option, value):
            return _build(option, value, key)
    wanted = " or ".join(_NAMES.get(_container(option), "an object") for option in options)
    found = f"{key!r} is {reprlib.repr(value)}, not {wanted}" if key else f"not {wanted}"
    raise ValueError(found)


def _container(kind: Any) -> Any:
    return get_origin(kind) or kind


def _matches(kind: Any, value: Any) -> bool:
    kind = _container(kind)
    if kind is Any:
        return True
    if kind in (int, float):
        types = int if kind is int else int | float
        in_range = isinstance(value, int | float) and abs(value) <= sys.float_info.max
        return isinstance(value, types) and not isinstance(value, bool) and in_range
    return isinstance(value, dict if dataclasses.is_dataclass(kind) else kind)


def _build(kind: Any, value: Any, key: str) -> Any:
    inside = get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _instance(kind, value, f"{key}." if key else "")
    if isinstance(value, dict) and inside:
        return {k: from_json(inside[1], each, f"{key}.{k}") for k, each in value.items()}
    if isinstance(value, list) and inside:
        return [from_json(inside[0], each, f"{key}[{at}]") for at, each in enumerate(value)]
    return value


@functools.cache
def _fields(cls: Any) -> dict[str, tuple[Any, bool]]:
    """Return name -> type, and whether it is required, of each field of a dataclass."""
    hints, missing = get_type_hints(cls), dataclasses.MISSING
    return {
        field.name: (hints[field.name], field.default is field.default_factory is missing)
        for field in dataclasses.fields(cls)
    }


def _instance(cls: Any, value: dict[str, Any], prefix: str) -> Any:
    known = _fields(cls)
    for name, (_, required) in known.items():
        if required and name not in value:
            raise ValueError(f"no {prefix + name!r}")
    given = known.keys() & value.keys()
    return cls(**{name: from_json(known[name][0], value[name], prefix + name) for name in given})
