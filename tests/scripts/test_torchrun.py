"""Several processes give what one gives at the same batch, write once, and end if one is lost."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import launch
import numpy as np
import pytest
import tiny
from launch import results
from refusals import assert_refused
from tensorboardX.proto.event_pb2 import Event

MINUTE = 60  # seconds after which the others must have ended if one process is lost


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A BERT without dropout, which differs between processes, and data of odd sizes."""
    folder = tmp_path_factory.mktemp("distributed")
    tiny.bert(folder / "bert", dropout=0.0)
    tiny.classifier(folder / "bert", folder / "trained")
    tiny.glue(folder / "MRPC", "MRPC", train=17, dev=13)  # the third batch has one row, for rank 0
    tiny.squad(folder / "squad", train=3, dev=3)
    tiny.text(folder / "text", train=41, valid=23)
    return folder


@pytest.fixture(scope="module")
def start():
    launcher = launch.Launcher({"HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"})
    yield launcher
    launcher.close()


def command(data, name, processes, *more):
    """An IMP run of three rounds with eight rows in a batch, for any number of processes."""
    rows = {
        "glue": ["LT_glue.py", "--task_name", "MRPC", "--data_dir", data / "MRPC"],
        "squad": ["squad_trans.py", "--train_file", data / "squad" / "train-v1.1.json"],
        "mlm": ["LT_pretrain.py", "--mlm", "--train_data_file", data / "text" / "en.train"],
    }[name]
    rows += {
        "glue": ["--do_lower_case", "--max_seq_length", "32"],
        "squad": [
            *("--do_lower_case", "--max_seq_length", "48", "--doc_stride", "16"),
            *("--max_query_length", "12"),
        ],
        "mlm": ["--block_size", "24"],
    }[name]
    rows += {
        "glue": [],
        "squad": ["--predict_file", data / "squad" / "dev-v1.1.json"],
        "mlm": ["--eval_data_file", data / "text" / "en.valid"],
    }[name]
    run = "--do_train --do_eval --no_cuda --output_dir out --learning_rate 1e-3 --max_steps 12"
    run += " --save_steps 4 --sparsities 0.3 0.6 --logging_steps 1 --overwrite_output_dir"
    batch = ["--per_gpu_train_batch_size", 8 // processes]
    return [*rows, "--model_name_or_path", data / "bert", *batch, *run.split(), *more]


def folder(path):
    path.mkdir()
    return path


def evaluation(data):
    """The flags of `command` for an evaluation of a model with a head."""
    flags = command(data, "glue", 2, "--model_name_or_path", data / "trained")
    return [flag for flag in map(str, flags) if flag != "--do_train"]


def errors(ended):
    """The lines on stderr of all processes together."""
    return [line for each in ended for line in each.errors()]


def losses(out):
    """The loss of every step, from the TensorBoard events."""
    found = {}
    for file in sorted((out / "events").iterdir()):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (size,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + size])
            for value in event.summary.value:
                if value.tag == "loss":
                    found[event.step] = value.simple_value
            at += size + 16
    return [found[step] for step in sorted(found)]


def digests(out):
    return [
        entry["mask_sha256"] for entry in json.loads((out / "tickets.json").read_text())["tickets"]
    ]


def names(out):
    return sorted(
        str(path.relative_to(out)) for path in out.rglob("*") if "events" not in path.parts
    )


@pytest.mark.parametrize("name", ["glue", "squad", "mlm"])
def test_two_processes_give_the_losses_masks_and_scores_of_one(start, data, tmp_path, name):
    single = start(*command(data, name, 1), cwd=folder(tmp_path / "one"))
    both = start.start(
        *command(data, name, 2), cwd=folder(tmp_path / "two"), processes=2
    ).wait_all()
    assert [single.code, *(ended.code for ended in both)] == [0, 0, 0], (
        single.err + both[0].err + both[1].err
    )
    one, two = tmp_path / "one" / "out", tmp_path / "two" / "out"
    assert len(losses(one)) == 12
    np.testing.assert_allclose(losses(two), losses(one), atol=1e-5, rtol=0)
    assert len(digests(one)) == 2 and digests(two) == digests(one)
    for mine, theirs in zip(results(one), results(two), strict=True):
        assert theirs["metrics"] == pytest.approx(mine["metrics"], rel=1e-5, abs=1e-5)
    # rank 1 prints and writes nothing
    assert (
        both[1].out == ""
        and both[1].errors() == []
        and both[0].out.count("round") == single.out.count("round")
    )
    assert names(two) == names(one)


def test_evaluation_alone_adds_one_row_for_all_processes(start, data, tmp_path):
    ended = start.start(*evaluation(data), cwd=tmp_path, processes=2).wait_all()
    assert [each.code for each in ended] == [0, 0], ended
    assert len(results(tmp_path / "out")) == 1 and ended[1].out == ""


# ---- processes that disagree, or are lost


DIFFER = """
import os, sys
sys.path.insert(0, {root!r})
import LT_glue
from utils import cli
from utils.pruning import masks
prune_to = masks.prune_to

def differently(model, target):
    prune_to(model, target)
    if os.environ["RANK"] == "1" and target > 0.5:
        module = next(iter(masks.prunable(model).values()))
        module.weight_mask[0, 0] = 1 - module.weight_mask[0, 0]

masks.prune_to = differently
cli.run(LT_glue.main)
"""


def test_a_mask_that_differs_in_one_weight_stops_all_processes(start, data, tmp_path):
    script = tmp_path / "differ.py"
    script.write_text(DIFFER.format(root=str(launch.ROOT)))
    flags = command(data, "glue", 2)[1:]
    ended = start.start(script, *flags, cwd=tmp_path, processes=2).wait_all()
    assert [each.code for each in ended] == [1, 1]
    (line,) = errors(ended)
    assert "the processes disagree on the mask of round 2" in line
    out = tmp_path / "out"
    assert len(digests(out)) == 1 and not (out / "checkpoint-8").exists(), (
        "the mask is not published"
    )
    assert (
        start.start(*command(data, "glue", 2), cwd=tmp_path, processes=2).wait_all()[0].code == 0
    ), "the run resumes"


RANKS = """
import os, sys
sys.path.insert(0, {root!r})
import glue_trans
from utils import cli
sys.argv += {more!r} if os.environ["RANK"] == "1" else []
cli.run(glue_trans.main)
"""


def other_bert(folder, **changes):
    """The model of `data` with other weights, or of other settings."""
    return tiny.bert(folder / "other", **{"dropout": 0.0, "seed": 1, **changes})


def other_mask(folder, bert):
    flags = f"--weight pre --model glue --rate 0.5 --model_name_or_path {bert}".split()
    launch.done("oneshot.py", *flags, "--output_dir", folder / "mask")
    return folder / "mask" / "mask.pt"


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (lambda path, data: ["--data_dir", tiny.glue(path / "MRPC", "MRPC", 17, 13, 1)], "data"),
        (lambda path, data: ["--model_name_or_path", other_bert(path)], "weights"),
        (
            lambda path, data: ["--model_name_or_path", other_bert(path, seed=0, dropout=0.2)],
            "model settings",
        ),
        (lambda path, data: ["--mask_dir", other_mask(path, data / "bert")], "mask"),
        (lambda path, data: ["--seed", "7"], "--seed"),
    ],
    ids=["data", "weights", "dropout", "mask", "flag"],
)
def test_processes_with_other_inputs_are_refused(start, data, tmp_path, more, what):
    """Before anything is written, with one line, also without --do_train ("mask")."""
    script = tmp_path / "ranks.py"
    words = list(map(str, more(tmp_path, data)))
    script.write_text(RANKS.format(root=str(launch.ROOT), more=words))
    flags = map(str, evaluation(data) if what == "mask" else command(data, "glue", 2))
    flags = [flag for flag in flags if flag not in ("LT_glue.py", "--sparsities", "0.3", "0.6")]
    ended = start.start(script, *flags, "--dir", "pre", cwd=tmp_path, processes=2).wait_all()
    (line,) = errors(ended)
    assert [each.code for each in ended] == [2, 2]
    assert "process 1 has other" in line and what in line
    assert not (tmp_path / "out").exists()


FAILS = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
import LT_glue
from utils import cli
from utils.errors import UserError
from utils.tasks.glue import GlueTask
load = GlueTask.load

def failing(*given):
    if os.environ["RANK"] == "{rank}":
        Path("began").touch()
        time.sleep(1)  # the other rank waits for this one
        {statement}
    return load(*given)

GlueTask.load = failing
cli.run(LT_glue.main)
"""


def start_failing(start, data, folder, rank, statement):
    """Two processes; `rank` executes a statement while it loads its data, and the other waits."""
    script = folder / "fails.py"
    source = FAILS.format(root=str(launch.ROOT), rank=rank, statement=statement)
    script.write_text(source)
    return start.start(script, *command(data, "glue", 2)[1:], cwd=folder, processes=2)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "failure",
    [
        ("UserError('train.tsv, line 7: no label')", 2, "train.tsv, line 7: no label"),
        ("OSError(5, 'Input/output error', 'train.tsv')", 1, "train.tsv: Input/output error"),
        ("MemoryError()", 1, "out of memory"),
        ("RuntimeError('CUDA error')", 1, "CUDA error"),
    ],
    ids=["user", "disk", "memory", "device"],
)
def test_the_reason_of_the_rank_that_fails_is_printed_once_and_ends_all(
    start, data, tmp_path, rank, failure
):
    error, code, reason = failure
    ended = start_failing(start, data, tmp_path, rank, f"raise {error}").wait_all()
    assert [each.code for each in ended] == [code, code]
    (line,) = errors(ended)
    assert line.startswith("fails.py: error: ") and reason in line
    assert f"process {rank}: " in line or (rank, code) == (0, 2)


def test_a_bug_on_one_rank_ends_the_others(start, data, tmp_path):
    ended = start_failing(start, data, tmp_path, 1, "raise TypeError('a bug')").wait_all()
    assert [each.code for each in ended] == [1, 1]
    assert "process 1: TypeError: a bug" in ended[1].err and "Traceback" in ended[1].err


@pytest.mark.parametrize("signalled", [[0], [1], [0, 1]])
@pytest.mark.parametrize("waiting", [0, 1])
def test_a_signal_ends_ranks_that_wait_for_another_one(start, data, tmp_path, waiting, signalled):
    running = start_failing(start, data, tmp_path, 1 - waiting, "time.sleep(100)")
    wait_for((tmp_path / "began").exists)
    time.sleep(3)
    for rank in signalled:
        os.kill(running.pids[rank], signal.SIGTERM)
    ended = running.wait_all()
    assert [each.code for each in ended] == [75, 75]
    line = "SIGTERM: stopped; the same command resumes from what is saved"
    assert errors(ended) == [line]


def test_a_signal_ends_a_rank_that_waits_for_a_frozen_one_in_training(start, data, tmp_path):
    """Within the 30 s after which torchrun and SLURM kill it; the run resumes."""
    flags = command(data, "glue", 2, "--checkpoint_minutes", 0, "--evaluate_during_training")
    running = start.start(*flags, cwd=tmp_path, processes=2)
    wait_for(state(tmp_path / "out", 0))
    os.kill(running.pids[1], signal.SIGSTOP)
    time.sleep(0.5)
    os.kill(running.pids[0], signal.SIGTERM)
    try:
        wait_for(lambda: (running.folders[0] / "err").read_text().count("SIGTERM"), seconds=30)
    finally:
        time.sleep(6)  # rank 0 waits for rank 1 before it ends
        os.kill(running.pids[1], signal.SIGKILL)
    first, second = running.wait_all()
    assert (first.code, second.code) == (75, -signal.SIGKILL)
    assert first.errors() == ["SIGTERM: stopped; the same command resumes from what is saved"]
    ended = start.start(*flags, cwd=tmp_path, processes=2).wait_all()
    assert [each.code for each in ended] == [0, 0], ended


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "two"},
        {"WORLD_SIZE": "2", "RANK": "one"},
        {"WORLD_SIZE": "2", "RANK": "2"},
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "port"},
    ],
    ids=str,
)
def test_wrong_variables_of_torchrun_are_refused(data, tmp_path, variables):
    script, *flags = command(data, "glue", 2)
    ended = launch.fresh(script, *flags, cwd=tmp_path, environment=variables)
    line = assert_refused(ended, script, "torchrun")
    assert all(f"{name}={value}" in line for name, value in variables.items())


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timeout"
        time.sleep(0.02)


def state(out, round_):
    """Whether the run has a checkpoint within this round."""
    return lambda: any(
        path.name.split("-")[2] != "0" for path in out.glob(f"state-{round_}-*-*.pt")
    )


def outcome(out):
    rows = [
        {key: value for key, value in row.items() if key not in ("wall_seconds", "args")}
        for row in results(out)
    ]
    weights = [
        (path.name, (path / "model.safetensors").read_bytes())
        for path in sorted(out.glob("checkpoint-*"))
    ]
    return rows, digests(out), weights, names(out)


@pytest.fixture(scope="module")
def undisturbed(start, data, tmp_path_factory):
    """What two undisturbed processes leave."""
    work = tmp_path_factory.mktemp("undisturbed")
    ended = start.start(*command(data, "glue", 2), cwd=work, processes=2).wait_all()
    assert [each.code for each in ended] == [0, 0]
    return outcome(work / "out")


def test_a_lost_process_ends_the_others_and_the_run_resumes(start, data, tmp_path, undisturbed):
    """SIGKILL to rank 1, then to rank 0, then SIGTERM to rank 1 alone; then to the end."""
    flags, out = command(data, "glue", 2, "--checkpoint_minutes", 0), tmp_path / "out"
    for round_, victim in ((0, 1), (1, 0)):
        running = start.start(*flags, cwd=tmp_path, processes=2)
        wait_for(state(out, round_))
        os.kill(running.pids[victim], signal.SIGKILL)
        killed = time.monotonic()
        ended = running.wait_all()
        assert time.monotonic() - killed < MINUTE
        assert (ended[victim].code, ended[1 - victim].code) == (-signal.SIGKILL, 1)
        (line,) = ended[1 - victim].errors()
        assert (
            f"LT_glue.py: error: process {1 - victim}: " in line
            and "resumes from the last checkpoint" in line
        )
    running = start.start(*flags, cwd=tmp_path, processes=2)
    wait_for(state(out, 2))
    os.kill(running.pids[1], signal.SIGTERM)
    ended = running.wait_all()
    assert [each.code for each in ended] == [75, 75]
    line = "SIGTERM: checkpoint saved in out; the same command resumes from here"
    assert errors(ended) == [line]
    ended = start.start(*flags, cwd=tmp_path, processes=2).wait_all()
    assert [each.code for each in ended] == [0, 0], ended
    assert outcome(out) == undisturbed


def test_a_run_of_two_processes_does_not_resume_with_one(start, data, tmp_path):
    """At 4 rows per process, one process alone would take other batches."""
    running = start.start(
        *command(data, "glue", 2, "--checkpoint_minutes", 0), cwd=tmp_path, processes=2
    )
    wait_for(state(tmp_path / "out", 0))
    os.kill(running.pids[0], signal.SIGTERM)
    running.wait_all()
    flags = [flag for flag in command(data, "glue", 2) if flag != "--overwrite_output_dir"]
    ended = start(*flags, cwd=tmp_path)
    assert ended.code == 2 and "--processes 2 there, None here" in ended.err


def test_a_refused_command_is_refused_once_by_all_processes(start, data, tmp_path):
    (folder(tmp_path / "out") / "thesis.txt").write_text("mine")
    flags = [flag for flag in command(data, "glue", 2) if flag != "--overwrite_output_dir"]
    first, second = start.start(*flags, cwd=tmp_path, processes=2).wait_all()
    assert (first.code, second.code) == (2, 2)
    assert "is not empty" in first.errors()[0] and second.errors() == [] == second.out.splitlines()


def test_an_unknown_flag_is_reported_once(start, data, tmp_path):
    flags = command(data, "glue", 2, "--colour", "red")
    first, second = start.start(*flags, cwd=tmp_path, processes=2).wait_all()
    assert (first.code, second.code) == (2, 2)
    (line,) = first.errors()
    assert line.startswith("LT_glue.py: error: ") and "--colour" in line
    assert second.errors() == [] and not (tmp_path / "out").exists()


def test_torchrun_passes_sigterm_on_and_the_run_resumes(start, data, tmp_path, undisturbed):
    script, *flags = command(data, "glue", 2, "--checkpoint_minutes", 0, "--local_rank", -1)
    out = tmp_path / "out"
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *("--standalone", "--nproc_per_node", "2", str(Path(launch.ROOT) / script)),
        *map(str, flags),
    ]
    with subprocess.Popen(
        torchrun,
        cwd=tmp_path,
        env={**os.environ, **launch.ONE_THREAD},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as running:
        try:
            wait_for(state(out, 0))
        finally:
            running.terminate()
        errors = running.stderr.read()
        assert running.wait() != 0
    assert "SIGTERM: checkpoint saved in out; the same command resumes from here" in errors
    ended = start.start(script, *flags, cwd=tmp_path, processes=2).wait_all()
    assert [each.code for each in ended] == [0, 0], ended
    assert outcome(out) == undisturbed
