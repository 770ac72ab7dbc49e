"""The cache of arrays: read back, rebuilt if corrupt, skipped if it cannot be written."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from utils.data.cache import cached_arrays

ARRAYS = {"ids": np.arange(300), "flags": np.ones(5, dtype=bool)}


def cached(path, overwrite=False):
    """The arrays of the cache, and how often they were built."""
    calls = []

    def build():
        calls.append(1)
        return ARRAYS

    found = cached_arrays(path, build, overwrite)
    assert found.keys() == ARRAYS.keys()
    assert all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)
    return len(calls)


def flip(content):
    return content[:200] + bytes([content[200] ^ 4]) + content[201:]


class Payload:
    """Unpickling it would run code."""

    def __reduce__(self):
        return os._exit, (9,)


def test_the_second_time_it_is_read_unless_overwritten(tmp_path, capsys):
    path = tmp_path / "new" / "cached.npz"
    assert [cached(path), cached(path), cached(path, overwrite=True)] == [1, 0, 1]
    assert [file.name for file in path.parent.iterdir()] == ["cached.npz"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "damage", [lambda content: content[: len(content) // 2], flip, lambda _: b"", lambda _: b"text"]
)
def test_a_corrupt_cache_is_rebuilt_with_a_warning(tmp_path, capsys, damage):
    path = tmp_path / "cached.npz"
    cached(path)
    good = path.read_bytes()
    path.write_bytes(damage(good))
    assert [cached(path), cached(path)] == [1, 0]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {path}: corrupt cache") and "rebuilding it" in line
    assert path.read_bytes() == good


def test_a_cache_of_other_arrays_or_objects_is_rebuilt(tmp_path, capsys):
    path = tmp_path / "cached.npz"
    np.savez(path, ids=ARRAYS["ids"])
    assert cached(path) == 1
    np.savez(path, ids=ARRAYS["ids"], flags=np.array([Payload()], dtype=object))
    assert cached(path) == 1
    assert capsys.readouterr().err.count("rebuilding it") == 2


CHANGES = [
    {"ids": ARRAYS["ids"] + 1},
    {"ids": ARRAYS["ids"].astype(np.int32)},
    {"ids": ARRAYS["ids"].reshape(3, 100)},
    {"ids": ARRAYS["ids"][:-1]},
    {"flags": np.zeros(5, dtype=bool)},
]


@pytest.mark.parametrize("change", CHANGES)
def test_arrays_that_were_not_written_here_are_not_trusted(tmp_path, capsys, change):
    path = tmp_path / "cached.npz"
    cached(path)
    with np.load(path) as archive:
        stored = dict(archive)
    np.savez(path, **{**stored, **change})
    assert [cached(path), cached(path)] == [1, 0]
    assert "rebuilding it" in capsys.readouterr().err


def test_a_cache_exchanged_with_another_is_rebuilt(tmp_path, capsys):
    one, other = tmp_path / "one.npz", tmp_path / "other.npz"
    cached(one)
    other.write_bytes(one.read_bytes())
    assert [cached(other), cached(other)] == [1, 0]
    assert str(other) in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_cache_that_cannot_be_written_is_skipped_with_a_warning(
    tmp_path, monkeypatch, capsys, number
):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(np, "savez", refuse)
    assert cached(tmp_path / "cached.npz") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cached.npz: cache not written ([Errno {number}] {os.strerror(number)}" in line
    assert list(tmp_path.iterdir()) == []


def test_many_jobs_at_once_read_or_write_whole_caches(tmp_path, capsys):
    path = tmp_path / "cached.npz"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda at: cached(path, overwrite=at % 3 == 0), range(60)))
    assert cached(path) == 0 and capsys.readouterr().err == ""
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
