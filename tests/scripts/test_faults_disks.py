"""Full disks, quotas and read-only folders: nothing saved is lost, and the run resumes."""

import errno
import os
import resource
import shutil

import launch
import pytest
from interrupted_runs import (
    ROUNDS,
    fill,
    glue,
    imp,
    interrupted,
    is_intact,
    mlm,
    mount,
    newest,
    outcome,
    read_only,
    squad,
    unmount,
)

from utils.data import text


@pytest.fixture
def disk(tmp_path):
    """A disk of 8 MB of its own, mounted on a folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", folder)
    yield folder
    unmount(folder)


# ---- full disks


def assert_stopped_by_the_disk(ended, out, words):
    """Exit code 1; one line names a file of the run and the reason; at most a warning before it."""
    *warnings, line = ended.errors()
    assert ended.code == 1 and line.startswith("LT_glue.py: error: "), ended.err
    assert str(out) in line and words in line and "what was saved before is intact" in line
    assert all("no TensorBoard events from here on" in warning for warning in warnings), warnings


@pytest.mark.parametrize("left", [0, 20_000, 120_000, 400_000, 500_000])
def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_resumes(
    inputs, disk, at_step, undisturbed, left
):
    """Free space for nothing, half a checkpoint, half a model folder, a few of both."""
    out = disk / "out"
    state = interrupted(inputs, out, at_step, step=6)
    content = state.read_bytes()
    fill(disk, left)
    ended = imp(inputs, out)
    assert_stopped_by_the_disk(ended, out, "No space left on device")
    assert newest(out) != state or state.read_bytes() == content
    assert is_intact(newest(out))
    (disk / "full").unlink()
    ended = imp(inputs, out)
    assert ended.code == 0 and ended.errors() == [], ended.err
    assert outcome(out) == undisturbed


@pytest.mark.parametrize("limit", [1_000, 30_000, 200_000])
def test_a_disk_that_takes_only_part_of_a_file(inputs, tmp_path, at_step, undisturbed, limit):
    """A limit on the size of files, which needs no root: on checkpoints, model weights, or all."""
    out = tmp_path / "out"
    state = interrupted(inputs, out, at_step, step=6)
    assert state.stat().st_size > 200_000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        ended = imp(inputs, out, "--checkpoint_minutes", 10 if limit == 30_000 else 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_stopped_by_the_disk(ended, out, "File too large")
    assert newest(out) == state and is_intact(state)
    assert imp(inputs, out).code == 0
    assert outcome(out) == undisturbed


def test_a_run_continues_without_tensorboard_events(inputs, tmp_path, monkeypatch, undisturbed):
    """A disk that takes no events gives one warning; everything else is as without the fault."""
    from tensorboardX.event_file_writer import EventsWriter

    def full(self, event):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(EventsWriter, "write_event", full)
    ended = imp(inputs, tmp_path / "out")
    (line,) = ended.errors()
    assert ended.code == 0
    assert "events: No space left on device; no TensorBoard events from here on" in line
    rows, _, contents = outcome(tmp_path / "out")
    assert (rows, contents) == (undisturbed[0], undisturbed[2])


def test_a_quota_reached_in_the_cache_of_a_text_ends_the_run_and_leaves_nothing(
    inputs, tmp_path, monkeypatch
):
    def over_quota(*_):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(text, "_write", over_quota)
    folders = ["--output_dir", tmp_path / "out", "--cache_dir", tmp_path / "cache"]
    ended = launch.run("LT_pretrain.py", *mlm(inputs, inputs / "text"), *folders)
    (line,) = ended.errors()
    assert ended.code == 2 and "no space for the WordPieces" in line and "--cache_dir" in line
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_full_disk_under_the_cache_of_squad_gives_warnings(inputs, disk, tmp_path):
    """The files are read again in the next run."""
    fill(disk, 300)
    flags = squad(inputs, inputs / "squad")
    folders = ["--output_dir", tmp_path / "out", "--cache_dir", disk]
    ended = launch.run("squad_trans.py", *flags, *folders)
    assert [path.name for path in disk.iterdir()] == ["full"]
    assert ended.code == 0 and len(ended.errors()) == 2
    for line in ended.errors():
        assert "No space left on device" in line and "continuing without it" in line


def test_a_full_disk_under_the_cache_of_a_text_ends_the_run(inputs, disk, tmp_path):
    """A text may be larger than the memory, so it needs its cache."""
    fill(disk, 300)
    flags = mlm(inputs, inputs / "text")
    folders = ["--output_dir", tmp_path / "out", "--cache_dir", disk]
    ended = launch.run("LT_pretrain.py", *flags, *folders)
    (line,) = ended.errors()
    assert ended.code == 2 and "no space for the WordPieces" in line
    assert [path.name for path in disk.iterdir()] == ["full"]


# ---- read-only folders


def test_a_read_only_output_folder_is_refused_and_its_run_resumes_later(
    inputs, tmp_path, at_step, undisturbed
):
    out = tmp_path / "out"
    interrupted(inputs, out, at_step, step=6)
    with read_only(out):
        ended = imp(inputs, out)
        (line,) = ended.errors()
        assert ended.code == 2 and "choose another" in line
        assert f"--output_dir {out}: cannot be written" in line
    assert imp(inputs, out).code == 0
    assert outcome(out) == undisturbed


@pytest.mark.parametrize("name", ["MRPC", "squad", "text"])
def test_a_read_only_data_folder_gives_a_warning_and_the_same_result(inputs, tmp_path, name):
    """No warning for GLUE, which has no cache."""
    ignored = shutil.ignore_patterns("cached*", "*.ids")
    data = shutil.copytree(inputs / name, tmp_path / "data", ignore=ignored)
    script, flags = {
        "MRPC": ("LT_glue.py", [*glue(inputs), "--data_dir", data, *ROUNDS]),
        "squad": ("squad_trans.py", squad(inputs, data)),
        "text": ("LT_pretrain.py", mlm(inputs, data)),
    }[name]
    before = sorted(path.name for path in data.iterdir())
    text._warn_once.cache_clear()
    with read_only(data):
        without = launch.run(script, *flags, "--output_dir", tmp_path / "without")
    assert without.code == 0 and sorted(path.name for path in data.iterdir()) == before
    assert bool(without.errors()) == (name != "MRPC")
    for line in without.errors():
        assert line.startswith("warning: ") and str(data) in line
    cached = launch.run(script, *flags, "--output_dir", tmp_path / "with")
    assert cached.code == 0 and cached.errors() == []
    assert outcome(tmp_path / "without") == outcome(tmp_path / "with")
