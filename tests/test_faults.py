"""What goes wrong around a run: full, read-only and spoilt disks, clocks, hostile files, losses that are no numbers."""

import contextlib
import ctypes
import errno
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import time

import launch
import numpy as np
import pytest
import tiny
import torch

from utils import cache, files, run, seeds, states, text, text_cache
from utils.errors import UserError
from utils.glue import GlueTask
from utils.training import Trainer

ROUNDS = ["--max_steps", 12, "--save_steps", 4, "--sparsities", 0.3, 0.6, "--logging_steps", 2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    tiny.bert(folder / "bert")
    tiny.glue(folder / "MRPC", "MRPC", train=20, dev=10)
    tiny.squad(folder / "squad", train=2, dev=2)
    tiny.text(folder / "text", train=30, valid=15)
    return folder


def imp(place, out, *more):
    """An IMP run of three rounds with four steps each; saves what it needs to go on after every step."""
    return launch.run(
        "LT_glue.py", "--output_dir", out, *glue(place), *ROUNDS, "--checkpoint_minutes", 0, *more
    )


def glue(place):
    return [
        "--model_name_or_path",
        place / "bert",
        "--task_name",
        "MRPC",
        "--data_dir",
        place / "MRPC",
        "--max_seq_length",
        32,
        "--do_train",
        "--do_eval",
        "--overwrite_output_dir",
        "--per_gpu_train_batch_size",
        6,
        "--learning_rate",
        1e-3,
        "--no_cuda",
    ]


def outcome(out):
    """What a run must end with: rows, masks, weights, and the names of its files."""
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    rows = [
        {
            **row,
            "wall_seconds": 0,
            "args": {**row["args"], "output_dir": "", "cache_dir": "", "checkpoint_minutes": 0},
        }
        for row in rows
    ]
    rows = json.loads(json.dumps(rows).replace(str(out), "OUT"))
    names = sorted(
        str(path.relative_to(out)) for path in out.rglob("*") if "events" not in path.parts
    )
    return (
        rows,
        names,
        [(out / name).read_bytes() for name in names if name.endswith((".safetensors", "mask.pt"))],
    )


@pytest.fixture(scope="module")
def undisturbed(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert imp(place, out).code == 0
    return outcome(out)


@pytest.fixture
def at_step(monkeypatch):
    """Calls something before the n-th optimizer step of this process."""

    def arrange(number, call):
        taken, original = [], Trainer.step

        def step(self, *args):
            taken.append(args)
            if len(taken) == number:
                call()
            return original(self, *args)

        monkeypatch.setattr(Trainer, "step", step)

    yield arrange
    monkeypatch.undo()


def interrupted(place, out, at_step, monkeypatch, step, script=imp):
    """Run up to a step and stop by SIGTERM; the checkpoint it goes on from."""
    at_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert script(place, out).code == 75
    monkeypatch.undo()
    return newest(out)


def newest(out):
    return max(out.glob("state-*.pt"), key=lambda path: tuple(map(int, path.name.split("-")[1:3])))


def mount(*arguments):
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting needs root and a kernel that allows it: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own, mounted on a folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", folder)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@contextlib.contextmanager
def read_only(folder):
    """The folder without the right to write: by its mode, or for root, who ignores modes, by a mount."""
    if os.geteuid():
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
        return
    mount("--bind", folder, folder)
    try:
        mount("-o", "remount,ro,bind", folder)
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(disk, left):
    """Fill the disk up to so many free bytes."""
    with open(disk / "filler", "wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    os.truncate(disk / "filler", max(0, (disk / "filler").stat().st_size - left))


# ---- signals, and checkpoints by the clock


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_in_mid_round_ends_after_the_step_with_its_state_saved(
    place, tmp_path, at_step, monkeypatch, undisturbed, name
):
    out = tmp_path / "out"
    at_step(6, lambda: os.kill(os.getpid(), getattr(signal, name)))
    ended = imp(place, out, "--checkpoint_minutes", 10)
    monkeypatch.undo()
    (line,) = ended.errors()
    assert (
        ended.code == 75
        and line == f"{name}: state saved in {out}; the same command goes on from here"
    )
    assert newest(out).name.startswith("state-1-2-"), "the sixth step was taken"
    assert imp(place, out).code == 0
    assert outcome(out) == undisturbed


def test_a_checkpoint_comes_every_so_many_minutes(place, tmp_path, monkeypatch):
    """Steps of four minutes: at ten minutes the third of a round's four is followed by a checkpoint, the others are not."""
    now, seen, original, out = [0.0], [], Trainer.step, tmp_path / "out"

    def step(self, *args):
        seen.append(
            tuple(map(int, newest(out).name.split("-")[1:3])) if any(out.glob("state-*")) else None
        )
        now[0] += 240
        return original(self, *args)

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    assert imp(place, out, "--checkpoint_minutes", 10).code == 0
    assert seen == [
        None,
        None,
        None,
        (0, 3),
        (1, 0),
        (1, 0),
        (1, 0),
        (1, 3),
        (2, 0),
        (2, 0),
        (2, 0),
        (2, 3),
    ]


# ---- full disks


def stopped_by_the_disk(ended, out, words):
    """Exit code 1; on stderr one line that names a file of the run and the reason, and at most a warning before it."""
    *warnings, line = ended.errors()
    assert ended.code == 1 and line.startswith("LT_glue.py: error: "), ended.err
    assert str(out) in line and words in line and "what was saved before is intact" in line
    assert all("going on without TensorBoard events" in warning for warning in warnings), warnings


@pytest.mark.parametrize("left", [0, 20_000, 120_000, 400_000, 500_000])
def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on(
    place, disk, at_step, monkeypatch, undisturbed, left
):
    """Free space for nothing, for half a checkpoint, for half a model folder, for a few of both."""
    out = disk / "out"
    state = interrupted(place, out, at_step, monkeypatch, step=6)
    content = state.read_bytes()
    fill(disk, left)
    ended = imp(place, out)
    stopped_by_the_disk(ended, out, "No space left on device")
    assert newest(out) != state or state.read_bytes() == content
    assert states.State.of(newest(out)).intact()
    (disk / "filler").unlink()
    ended = imp(place, out)
    assert ended.code == 0 and ended.errors() == [], ended.err
    assert outcome(out) == undisturbed


@pytest.mark.parametrize("limit", [1_000, 30_000, 200_000])
def test_a_disk_that_takes_only_part_of_a_file(
    place, tmp_path, at_step, monkeypatch, undisturbed, limit
):
    """The same by a limit on the size of files, which needs no root: on the checkpoint, on the model's weights, on all."""
    out = tmp_path / "out"
    state = interrupted(place, out, at_step, monkeypatch, step=6)
    assert state.stat().st_size > 200_000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        ended = imp(place, out, "--checkpoint_minutes", 10 if limit == 30_000 else 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    stopped_by_the_disk(ended, out, "File too large")
    assert newest(out) == state and states.State.of(state).intact()
    assert imp(place, out).code == 0
    assert outcome(out) == undisturbed


def test_the_curves_are_not_worth_the_run(place, tmp_path, monkeypatch, undisturbed):
    """A disk that takes no TensorBoard events is told once, and everything else is as ever."""
    from tensorboardX.event_file_writer import EventsWriter

    def full(self, event):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(EventsWriter, "write_event", full)
    ended = imp(place, tmp_path / "out")
    (line,) = ended.errors()
    assert (
        ended.code == 0
        and "events: No space left on device; going on without TensorBoard events" in line
    )
    rows, names, contents = outcome(tmp_path / "out")
    assert (rows, contents) == (undisturbed[0], undisturbed[2])


def test_a_gpu_short_of_memory_is_told_in_a_line_and_the_run_goes_on_later(
    place, tmp_path, monkeypatch, at_step, undisturbed
):
    def short():
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"
        )

    at_step(7, short)
    ended = imp(place, tmp_path / "out", "--checkpoint_minutes", 0)
    monkeypatch.undo()
    (line,) = ended.errors()
    assert ended.code == 1 and "CUDA out of memory. Tried to allocate 2.00 GiB; free some" in line
    assert "--gradient_accumulation_steps" in line and newest(tmp_path / "out")
    assert imp(place, tmp_path / "out", "--checkpoint_minutes", 0).code == 0
    assert outcome(tmp_path / "out") == undisturbed


def over_quota(*_, **__):
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def test_a_quota_reached_in_the_cache_of_rows_is_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(np, "savez", over_quota)
    found = cache.cached_arrays(
        tmp_path / "cached.npz", lambda: {"ids": np.arange(3)}, lambda arrays: True
    )
    assert found["ids"].tolist() == [0, 1, 2] and list(tmp_path.iterdir()) == []
    assert (
        "cached.npz: cache not written ([Errno 122] Disk quota exceeded" in capsys.readouterr().err
    )


def test_a_quota_reached_in_the_cache_of_a_text_is_told_and_leaves_nothing(
    place, tmp_path, monkeypatch
):
    monkeypatch.setattr(text_cache, "write", over_quota)
    ended = launch.run(
        "LT_pretrain.py",
        *mlm(place),
        "--output_dir",
        tmp_path / "out",
        "--cache_dir",
        tmp_path / "cache",
    )
    (line,) = ended.errors()
    assert ended.code == 2 and "no room for the WordPieces" in line and "--cache_dir" in line
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["glue", "mlm"])
def test_a_full_disk_under_the_cache(place, disk, tmp_path, name):
    """Rows are read again the next time; a text, which may be larger than the memory, needs its cache."""
    fill(disk, 300)
    script, flags = {
        "glue": ("LT_glue.py", [*glue(place), *ROUNDS]),
        "mlm": ("LT_pretrain.py", mlm(place)),
    }[name]
    ended = launch.run(script, *flags, "--output_dir", tmp_path / "out", "--cache_dir", disk)
    assert [path.name for path in disk.iterdir()] == ["filler"]
    if name == "glue":
        assert ended.code == 0 and len(ended.errors()) == 2
        assert all(
            "No space left on device" in line and "going on without it" in line
            for line in ended.errors()
        )
    else:
        (line,) = ended.errors()
        assert ended.code == 2 and "no room for the WordPieces" in line


# ---- read-only folders


def mlm(place, data=None):
    data = data or place / "text"
    return [
        "--model_name_or_path",
        place / "bert",
        "--train_data_file",
        data / "en.train",
        "--eval_data_file",
        data / "en.valid",
        "--mlm",
        "--do_train",
        "--do_eval",
        "--block_size",
        24,
        "--per_gpu_train_batch_size",
        4,
        "--no_cuda",
        *ROUNDS,
    ]


def squad(place, data):
    return [
        "--model_name_or_path",
        place / "bert",
        "--train_file",
        data / "train-v1.1.json",
        "--predict_file",
        data / "dev-v1.1.json",
        "--do_train",
        "--do_eval",
        "--max_seq_length",
        48,
        "--doc_stride",
        16,
        "--max_query_length",
        12,
        "--per_gpu_train_batch_size",
        4,
        "--no_cuda",
        *ROUNDS,
    ]


def test_a_read_only_output_folder_is_refused_and_its_run_goes_on_later(
    place, tmp_path, at_step, monkeypatch, undisturbed
):
    out = tmp_path / "out"
    interrupted(place, out, at_step, monkeypatch, step=6)
    with read_only(out):
        ended = imp(place, out)
        (line,) = ended.errors()
        assert (
            ended.code == 2
            and f"--output_dir {out}: cannot be written" in line
            and "choose another" in line
        )
    assert imp(place, out).code == 0
    assert outcome(out) == undisturbed


@pytest.mark.parametrize("name", ["MRPC", "squad", "text"])
def test_a_read_only_data_folder_gives_a_warning_and_the_same_result(place, tmp_path, name):
    data = shutil.copytree(
        place / name, tmp_path / "data", ignore=shutil.ignore_patterns("cached*", "*.ids")
    )
    script, flags = {
        "MRPC": ("LT_glue.py", [*glue(place), "--data_dir", data, *ROUNDS]),
        "squad": ("squad_trans.py", squad(place, data)),
        "text": ("LT_pretrain.py", mlm(place, data)),
    }[name]
    before = sorted(path.name for path in data.iterdir())
    text._say_once.cache_clear()
    with read_only(data):
        without = launch.run(script, *flags, "--output_dir", tmp_path / "without")
    assert without.code == 0 and sorted(path.name for path in data.iterdir()) == before
    assert without.errors() and all(
        line.startswith("warning: ") and str(data) in line for line in without.errors()
    )
    cached = launch.run(script, *flags, "--output_dir", tmp_path / "with")
    assert cached.code == 0 and cached.errors() == []
    assert outcome(tmp_path / "without") == outcome(tmp_path / "with")


# ---- spoilt files of the run itself


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def halve(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("spoil", [flip_a_bit, halve])
def test_a_spoilt_checkpoint_costs_the_round_and_not_the_run(
    place, tmp_path, at_step, monkeypatch, undisturbed, spoil
):
    out = tmp_path / "out"
    state = interrupted(place, out, at_step, monkeypatch, step=7)
    spoil(state)
    ended = imp(place, out)
    (line,) = ended.errors()
    assert ended.code == 0 and line.startswith(
        f"warning: {state}: this checkpoint is cut short or damaged; going back to"
    )
    assert outcome(out) == undisturbed


def alone(place, out, *more):
    return launch.run(
        "glue_trans.py",
        "--output_dir",
        out,
        *glue(place),
        "--dir",
        "pre",
        "--max_steps",
        6,
        "--save_steps",
        2,
        *more,
    )


def test_a_spoilt_checkpoint_of_a_fine_tuning_begins_it_anew(place, tmp_path, at_step, monkeypatch):
    assert alone(place, tmp_path / "undisturbed").code == 0
    state = interrupted(place, tmp_path / "out", at_step, monkeypatch, step=4, script=alone)
    flip_a_bit(state)
    ended = alone(place, tmp_path / "out")
    assert ended.code == 0 and len(ended.errors()) == 1
    assert outcome(tmp_path / "out") == outcome(tmp_path / "undisturbed")


@pytest.mark.parametrize("spoil", [flip_a_bit, halve])
def test_spoilt_rewinding_weights_are_never_rewound_to(
    place, tmp_path, at_step, monkeypatch, spoil
):
    out = tmp_path / "out"
    at_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert imp(place, out, "--rewind_steps", 1).code == 75
    monkeypatch.undo()
    spoil(out / files.REWIND_WEIGHTS)
    ended = imp(place, out, "--rewind_steps", 1)
    (line,) = ended.errors()
    assert (
        ended.code == 2
        and f"{out / files.REWIND_WEIGHTS}: the weight file is cut short or damaged" in line
    )


@pytest.mark.parametrize("spoil", [flip_a_bit, halve])
def test_a_spoilt_mask_is_never_trained_with(place, tmp_path, spoil):
    assert (
        launch.run(
            "oneshot.py",
            "--weight",
            "pre",
            "--model",
            "glue",
            "--rate",
            0.5,
            "--model_name_or_path",
            place / "bert",
            "--output_dir",
            tmp_path / "omp",
        ).code
        == 0
    )
    spoil(tmp_path / "omp" / "mask.pt")
    ended = launch.run(
        "glue_trans.py",
        "--output_dir",
        tmp_path / "out",
        *glue(place),
        "--dir",
        "pre",
        "--max_steps",
        2,
        "--mask_dir",
        tmp_path / "omp" / "mask.pt",
    )
    (line,) = ended.errors()
    assert (
        ended.code == 2
        and "mask.pt: the mask file is cut short or damaged" in line
        and not (tmp_path / "out").exists()
    )


def test_half_a_line_in_the_results_is_reported_and_the_next_row_gets_a_line_of_its_own(
    place, tmp_path
):
    """As a power cut may leave it; a run that goes on drops it, evaluation alone adds rows behind it."""
    out = tmp_path / "out"
    flags = [flag for flag in glue(place) if flag != "--do_train"]
    assert launch.run("glue_trans.py", "--output_dir", out, *flags, "--dir", "pre").code == 0
    with open(out / "results.jsonl", "ab") as file:
        file.write(b'{"task": "mrpc", "sc')
    ended = launch.run("glue_trans.py", "--output_dir", out, *flags, "--dir", "pre")
    assert ended.code == 0
    assert set(ended.errors()) == {
        f"warning: {out / 'results.jsonl'}, line 2: not a whole row; left out"
    }
    whole, half, other = (out / "results.jsonl").read_text().splitlines()
    assert (
        half == '{"task": "mrpc", "sc'
        and json.loads(whole)["metrics"] == json.loads(other)["metrics"]
    )
    assert len(run.read_rows(out / "results.jsonl")) == 2


def test_a_run_does_not_go_on_with_a_model_or_mask_that_was_exchanged(
    place, tmp_path, at_step, monkeypatch
):
    """The flags are the same, what they name is not: theta_0 to rewind to, or the mask that the rows tell of."""
    bert, mask = shutil.copytree(place / "bert", tmp_path / "bert"), tmp_path / "omp" / "mask.pt"

    def one_shot(seed):
        assert (
            launch.run(
                "oneshot.py",
                "--weight",
                "pre",
                "--model",
                "glue",
                "--rate",
                0.5,
                "--method",
                "random",
                "--seed",
                seed,
                "--model_name_or_path",
                place / "bert",
                "--output_dir",
                mask.parent,
            ).code
            == 0
        )

    def masked(place, out, *more):
        return alone(place, out, "--mask_dir", mask, *more)

    def other_model():
        tiny.bert(bert, seed=1)

    one_shot(1)
    for script, exchange in (
        (lambda *given: imp(*given, "--model_name_or_path", bert), other_model),
        (masked, lambda: one_shot(2)),
    ):
        out = tmp_path / f"out-{exchange.__name__}"
        state = interrupted(place, out, at_step, monkeypatch, step=4, script=script)
        exchange()
        ended = script(place, out)
        (line,) = ended.errors()
        assert (
            ended.code == 2
            and f"{out}: this run began with other weights or another mask" in line
            and "--restart" in line
        )
        assert newest(out) == state
        assert script(place, out, "--restart").code == 0


@pytest.mark.parametrize("name", ["MRPC", "squad", "text"])
def test_a_run_does_not_go_on_with_other_training_data(place, tmp_path, at_step, monkeypatch, name):
    data = shutil.copytree(place / name, tmp_path / name)
    if name == "MRPC":
        given, file = ["LT_glue.py", *glue(place), "--data_dir", data], data / "train.tsv"
    elif name == "squad":
        file = data / "train-v1.1.json"
        given = [
            "squad_trans.py",
            "--model_name_or_path",
            place / "bert",
            "--train_file",
            file,
            "--do_train",
            "--no_cuda",
            "--max_seq_length",
            48,
            "--doc_stride",
            16,
            "--max_query_length",
            12,
        ]
    else:
        file = data / "en.train"
        given = [
            "LT_pretrain.py",
            "--model_name_or_path",
            place / "bert",
            "--train_data_file",
            file,
            "--do_train",
            "--no_cuda",
            "--mlm",
            "--block_size",
            16,
        ]

    def run_(place, out, *more):
        return launch.run(*given, "--output_dir", out, *ROUNDS, "--checkpoint_minutes", 0, *more)

    state = interrupted(place, tmp_path / "out", at_step, monkeypatch, step=4, script=run_)
    if name == "squad":
        content = json.loads(file.read_text())
        content["data"][0]["paragraphs"].pop()
        file.write_text(json.dumps(content))
    else:
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:-8]))
    ended = run_(place, tmp_path / "out")
    line = ended.errors()[-1]
    assert (
        ended.code == 2
        and "this run began with other training data" in line
        and "--restart" in line
    )
    assert newest(tmp_path / "out") == state
    assert run_(place, tmp_path / "out", "--restart").code == 0


# ---- the folder, the clock


@pytest.mark.parametrize("how", ["removed", "moved away", "replaced"])
def test_a_folder_that_goes_under_a_running_job_ends_it_and_is_not_half_remade(
    place, tmp_path, at_step, monkeypatch, how, undisturbed
):
    out, other = tmp_path / "out", tmp_path / "other"

    def go():
        shutil.rmtree(out) if how == "removed" else out.rename(other)
        if how == "replaced":
            out.mkdir()
            (out / ".lock").touch()

    at_step(6, go)
    ended = imp(place, out)
    monkeypatch.undo()
    (line,) = ended.errors()
    assert (
        ended.code == 2 and f"--output_dir {out}: removed while this run was writing there" in line
    )
    assert (
        [path.name for path in out.iterdir()] == [".lock"]
        if how == "replaced"
        else not out.exists()
    )
    if how != "removed":
        shutil.rmtree(out, ignore_errors=True)
        other.rename(out)
        assert states.State.of(newest(out)).intact()
    assert imp(place, out).code == 0
    assert outcome(out) == undisturbed


def test_a_clock_that_goes_backwards_changes_nothing(
    place, tmp_path, at_step, monkeypatch, undisturbed
):
    """An hour with every look at it, and a day between the two processes of the run."""
    now = [2e9]

    def backwards():
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    at_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    out = tmp_path / "out"
    assert imp(place, out).code == 75
    monkeypatch.undo()
    for path in out.rglob("*"):
        os.utime(path, (4e9, 4e9))  # as if written in the year 2096
    now[0] -= 86400
    monkeypatch.setattr(time, "time", backwards)
    ended = imp(place, out)
    assert ended.code == 0 and ended.errors() == []
    assert outcome(out) == undisturbed
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert all(0 <= row["wall_seconds"] < 3600 for row in rows)


# ---- losses that are no numbers


def not_a_number(loss, model):
    return loss * float("nan")


def infinite(loss, model):
    return loss + float("inf")


def gradient_only(loss, model):
    """The loss is as it was, its gradient is not a number."""
    return loss + (0 * model.classifier.bias.sum()).sqrt() * 0


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (not_a_number, "the loss is nan"),
        (infinite, "the loss is inf"),
        (gradient_only, "the gradient's norm is nan"),
    ],
)
def test_what_is_no_number_stops_at_once_and_keeps_the_last_good_checkpoint(
    place, tmp_path, monkeypatch, undisturbed, spoil, told
):
    losses, original = [], GlueTask.loss

    def loss(self, model, batch):
        losses.append(batch)
        value = original(self, model, batch)
        return spoil(value, model) if len(losses) == 6 else value

    monkeypatch.setattr(GlueTask, "loss", loss)
    out = tmp_path / "out"
    ended = imp(place, out)
    monkeypatch.undo()
    (line,) = ended.errors()
    (rows,) = seeds.Order(20, 6, 1, seed=42).batches(1, 1)
    assert ended.code == 2 and len(losses) == 6
    assert f"{told} at step 2 of round 2 (training rows {', '.join(map(str, rows))})" in line
    assert "--learning_rate" in line and "the last good checkpoint is kept" in line
    assert newest(out).name.startswith("state-1-1-") and states.State.of(newest(out)).intact()
    assert imp(place, out).code == 0
    assert outcome(out) == undisturbed


# ---- files that would run code


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture(params=["torch", "bare pickle"])
def hostile(request, tmp_path):
    """Writes a file that makes a folder where it is unpickled; then checks that it did not."""
    proof = tmp_path / "executed"

    def write(path):
        content = {"bert.pooler.dense.weight_mask": Payload(proof)}
        torch.save(content, path) if request.param == "torch" else path.write_bytes(
            pickle.dumps(content, 2)
        )
        return path

    yield write
    assert not proof.exists()
    with contextlib.suppress(Exception):
        torch.load(next(tmp_path.glob("hostile*")), weights_only=False)
        assert proof.exists(), "the file is as hostile as it should be"


@pytest.mark.parametrize("flag", ["--mask_dir", "--weight_pertub"])
def test_a_mask_or_weights_with_a_payload_are_refused(place, tmp_path, hostile, flag):
    path = hostile(tmp_path / "hostile.pt")
    ended = launch.run(
        "glue_trans.py", "--output_dir", tmp_path / "out", *glue(place), "--dir", "pre", flag, path
    )
    (line,) = ended.errors()
    assert (
        ended.code == 2
        and str(path) in line
        and ("refused, nothing in it was run" in line or "damaged" in line)
    )


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_model_with_a_payload_is_refused(place, tmp_path, hostile, name):
    bert = shutil.copytree(place / "bert", tmp_path / "bert")
    (bert / "model.safetensors").unlink()
    shutil.copy(hostile(bert / name), tmp_path / "hostile.pt")
    ended = launch.run(
        "glue_trans.py",
        "--output_dir",
        tmp_path / "out",
        *glue(place),
        "--dir",
        "pre",
        "--model_name_or_path",
        bert,
        "--max_steps",
        1,
    )
    (line,) = ended.errors()
    assert ended.code == 2 and f"{bert}: the model folder cannot be loaded" in line


def test_a_checkpoint_with_a_payload_is_refused(place, tmp_path, at_step, monkeypatch, hostile):
    """Under a name with the right digest, as only a deliberate one has."""
    out = tmp_path / "out"
    state = interrupted(place, out, at_step, monkeypatch, step=6)
    hostile(tmp_path / "hostile.pt")
    target = state.with_name(f"state-1-3-{files.sha256(tmp_path / 'hostile.pt')[:16]}.pt")
    shutil.copy(tmp_path / "hostile.pt", target)
    ended = imp(place, out)
    (line,) = ended.errors()
    assert ended.code == 2 and f"{target}: not a checkpoint that this program wrote" in line


@pytest.mark.parametrize("name", ["MRPC", "squad"])
def test_a_feature_cache_with_a_payload_is_built_anew(place, tmp_path, hostile, name):
    data = shutil.copytree(
        place / name, tmp_path / "data", ignore=shutil.ignore_patterns("cached*")
    )
    script, flags = {
        "MRPC": ("LT_glue.py", [*glue(place), "--data_dir", data, *ROUNDS]),
        "squad": ("squad_trans.py", squad(place, data)),
    }[name]
    assert launch.run(script, *flags, "--output_dir", tmp_path / "before").errors() == []
    train, dev = sorted(data.glob("cached*"))
    good = train.read_bytes()
    for path in (train, dev):
        hostile(path)
    shutil.copy(train, tmp_path / "hostile.npz")
    ended = launch.run(script, *flags, "--output_dir", tmp_path / "after")
    assert ended.code == 0 and len(ended.errors()) == 2
    assert all("cache" in line and "building it anew" in line for line in ended.errors())
    assert (
        outcome(tmp_path / "after") == outcome(tmp_path / "before") and train.read_bytes() == good
    )


# ---- memory


MEASURED = """
import ctypes, sys
sys.path.insert(0, {root!r})
import LT_glue
from utils import cli, imp
publish = imp.Tickets.publish

def measured(self, round_, *rest):
    publish(self, round_, *rest)
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the allocator only keeps at hand is not held by the run
    pages = int(open("/proc/self/statm").read().split()[1])
    print("resident", round_ + 1, pages, flush=True)

imp.Tickets.publish = measured
cli.run(LT_glue.main)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc and /proc")
def test_ten_rounds_end_with_the_memory_of_the_second(tmp_path):
    """3 million prunable weights: one more mask or copy of them a round would add 12 MB a round, a quarter in all."""
    tiny.bert(tmp_path / "bert", layers=4, width=256)
    tiny.glue(tmp_path / "MRPC", "MRPC", train=16, dev=8)
    (tmp_path / "measured.py").write_text(MEASURED.format(root=str(launch.ROOT)))
    launcher = launch.Launcher({"MALLOC_ARENA_MAX": "1"})
    ended = launcher(
        str(tmp_path / "measured.py"),
        "--output_dir",
        tmp_path / "out",
        *glue(tmp_path),
        "--max_steps",
        20,
        "--save_steps",
        2,
        "--save_total_limit",
        1,
        cwd=tmp_path,
    )
    launcher.close()
    assert ended.code == 0, ended.err
    pages = {
        int(line.split()[1]): int(line.split()[2])
        for line in ended.out.splitlines()
        if line.startswith("resident")
    }
    assert len(pages) == 10 and pages[10] < 1.05 * pages[2], pages


def test_a_run_is_not_taken_for_another_s_whose_folder_it_is_given(tmp_path):
    with (
        run.Run.open(str(tmp_path), {"seed": 1}, overwrite=False),
        pytest.raises(UserError, match="another process"),
    ):
        run.Run.open(str(tmp_path), {"seed": 2}, overwrite=True)
