"""How a list of commands runs: stages, failures, what is finished, signals, and SLURM arrays."""

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

import glue_trans
from experiments import joblist, preloaded
from utils import cli, files
from utils.config import flag_values
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent

STUB = """
import json, pathlib, signal, sys, time
words = dict(zip(sys.argv, sys.argv[1:]))
folder = pathlib.Path(words["--output_dir"])
folder.mkdir(parents=True, exist_ok=True)
if "--wait" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (folder / "started").touch()
    time.sleep(60)
with open("order", "a") as file:
    file.write(folder.name + "\\n")
if "--fail" in sys.argv:
    sys.exit(3)
if sys.argv[0] == "oneshot.py":
    (folder / "mask.pt").touch()
else:
    run = folder / "run.json"
    words = [word for word in sys.argv[1:] if word != "--half"]
    arguments = {"words": words}
    found = json.loads(run.read_text())["arguments"] if run.exists() else arguments
    if found != arguments:
        sys.exit(f"{folder} holds a run with other arguments")
    finished = "--half" not in sys.argv
    run.write_text(json.dumps({"arguments": arguments, "finished": finished}))
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A folder with a stand-in for the scripts, as working directory."""
    for name in ("train.py", "oneshot.py"):
        (tmp_path / name).write_text(STUB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return tmp_path


def write_list(folder: Path, *lines: str) -> Path:
    path = folder / "list.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def order(folder: Path) -> list[str]:
    return (folder / "order").read_text().split()


def wait_for(path: Path) -> None:
    for _ in range(300):
        if path.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} does not appear")


def test_a_list_runs_by_stages_and_continues_after_a_failure(workplace, capfd):
    path = write_list(
        workplace,
        "# a note",
        "# stage 1",
        "python oneshot.py --output_dir o/mask",
        "",
        "# stage 2",
        "python train.py --output_dir o/bad --fail",
        "python train.py --mask o/mask/mask.pt --output_dir o/good",
        "# stage 3",
        "python train.py --mask o/bad/x/mask.pt --output_dir o/last",
        "python train.py --mask o/good2/mask.pt --output_dir o/other",
    )
    assert joblist.main([str(path), "--jobs", "2"]) == 1
    printed = capfd.readouterr().out
    first, *rest = order(workplace)
    assert first == "mask" and sorted(rest) == ["bad", "good", "other"]
    assert "line 6 failed" in printed and "exit code 3" in printed
    assert "line 9 not started: o/last (needs o/bad, line 6, which is not finished)" in printed
    assert "3 done, 1 failed, 1 not started" in printed
    assert "failed: line 6: python train.py --output_dir o/bad --fail" in printed
    assert "o/bad --fail" in (workplace / "list.txt.logs" / "0006.log").read_text()


def test_a_second_run_skips_what_is_finished(workplace, capfd):
    path = write_list(
        workplace,
        "python oneshot.py --output_dir o/mask",
        "python train.py --output_dir o/a",
        "python train.py --output_dir o/b --half",
    )
    assert joblist.main([str(path)]) == 1  # o/b says it is not finished
    assert "exit code 0, but o/b is not finished" in capfd.readouterr().out
    assert joblist.main([str(path)]) == 1
    assert "2 skipped, 1 failed" in capfd.readouterr().out
    assert order(workplace) == ["mask", "a", "b", "b"]


def test_similar_folder_names_are_not_confused(workplace):
    path = write_list(
        workplace,
        "python train.py --output_dir o/seed1 --fail",
        "python train.py --output_dir o/seed10",
        "# stage 2",
        "python train.py --mask o/seed10/mask.pt --output_dir o/c",
        "python train.py --mask=o/seed1/mask.pt --output_dir=o/d",
    )
    assert joblist.main([str(path)]) == 1
    assert order(workplace) == ["seed1", "seed10", "c"]


def test_one_command_of_a_stage(workplace, capfd):
    path = write_list(
        workplace,
        "python train.py --output_dir o/a",
        "# stage 2",
        "python train.py --output_dir o/b",
        "python train.py --output_dir o/c --mask o/a/mask.pt",
    )
    assert joblist.main([str(path), "--count"]) == 0
    assert capfd.readouterr().out == "1 2\n"
    assert joblist.main([str(path), "--stage", "2", "--number", "1"]) == 1  # o/a is missing
    assert joblist.main([str(path), "--stage", "2", "--number", "0"]) == 0
    assert order(workplace) == ["b"]
    with pytest.raises(UserError, match="no such command"):
        joblist.main([str(path), "--stage", "2", "--number", "2"])
    with pytest.raises(UserError, match="no such command"):
        joblist.main([str(path), "--number", "-1"])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["# only notes"], "no command in it"),
        (["python 'x"], "line 1: No closing quotation"),
        (["$EMPTY"], "line 1: its variables are empty"),
        (["a --output_dir o", "b --output_dir o"], "line 1: another line writes to o too"),
        (["a --output_dir o", "b --output_dir=o"], "line 1: another line writes to o too"),
    ],
)
def test_lists_that_cannot_run(workplace, lines, message, monkeypatch):
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(UserError, match=message):
        joblist.main([str(write_list(workplace, *lines))])


@pytest.mark.parametrize("terminal", [True, False])
def test_run_local_stops_its_commands_when_it_is_stopped(workplace, terminal):
    path = write_list(
        workplace,
        "python train.py --output_dir o/slow --wait",
        "python train.py --output_dir o/next",
    )
    words = ["bash", str(ROOT / "experiments" / "run_local.sh"), str(path)]
    reading, writing = os.pipe()
    os.close(reading)
    stderr = None if terminal else writing  # nobody reads it: writing fails
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stderr, text=True)
    os.close(writing)
    wait_for(workplace / "o" / "slow" / "started")
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == joblist.STOPPED and "1 stopped, 1 to come" in printed
    assert not (workplace / "order").exists()


def test_run_local_names_a_missing_list(workplace):
    words = ["bash", str(ROOT / "experiments" / "run_local.sh"), "nolist"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and "nolist" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("flags", [(), ("--status",), ("--count",), ("--jobs", "2")])
def test_run_local_outside_of_the_repository_starts_nothing(workplace, flags):
    words = ["bash", str(ROOT / "experiments" / "run_local.sh"), "list.txt", *flags]
    lines = ("python train.py --output_dir o/a", "python -u glue_trans.py --output_dir o/b")
    write_list(workplace, *lines)
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"line 2: no glue_trans.py in {workplace}" in done.stderr
    assert f"run the list in {ROOT}" in done.stderr
    assert {path.name for path in workplace.iterdir()} == {"train.py", "oneshot.py", "list.txt"}


@pytest.mark.parametrize(
    "line",
    [
        f"python {ROOT}/glue_trans.py --output_dir o",
        f"cd {ROOT} && python glue_trans.py --output_dir o",
        "python other.py --output_dir o",  # the user's own script: its error is in the log
    ],
)
def test_scripts_of_another_folder_may_be_in_a_list(workplace, line):
    assert len(joblist.read(write_list(workplace, line))) == 1


@pytest.mark.parametrize(
    ("text", "complete"), [("{", False), ("[]", False), ('{"finished": true}', True)]
)
def test_run_json_shows_what_is_complete(workplace, text, complete):
    (job,) = joblist.read(write_list(workplace, "python train.py --output_dir o/mask-0.5 --seed 1"))
    assert not job.complete()
    (workplace / "o" / "mask-0.5").mkdir(parents=True)
    (workplace / "o" / "mask-0.5" / "run.json").write_text(text)
    assert job.complete() is complete


def test_a_finished_run_of_another_list_is_left_to_its_script(workplace, capfd):
    """The script ends at once if it is the same command; from then on the log shows it."""
    line = "python train.py --output_dir o/a --seed 1"
    subprocess.run(line.split(), check=True)
    path = write_list(workplace, line)
    assert joblist.main([str(path)]) == 0 and order(workplace) == ["a", "a"]
    assert joblist.main([str(path)]) == 0 and order(workplace) == ["a", "a"]
    assert "1 done" in (printed := capfd.readouterr().out) and "1 skipped" in printed


def test_a_folder_with_a_run_of_other_arguments_is_left_to_the_script_to_refuse(workplace, capfd):
    lines = ["python train.py --output_dir o/a --data data1", "# stage 2"]
    lines += ["python train.py --output_dir o/b --mask o/a/mask.pt"]
    assert joblist.main([str(write_list(workplace, *lines)), "--stage", "1"]) == 0
    lines[0] = lines[0].replace("data1", "data2")
    (workplace / "order").unlink()
    path = str(write_list(workplace, *lines))
    capfd.readouterr()
    assert joblist.main([path, "--stage", "2"]) == 1  # o/b does not need the mask of other data
    expected = "line 3 not started: o/b (needs o/a, line 1, which is not finished)"
    assert expected in capfd.readouterr().out
    assert joblist.main([path, "--stage", "1"]) == 1
    assert "line 1 failed" in capfd.readouterr().out and order(workplace) == ["a"]
    log = (workplace / "list.txt.logs" / "0001.log").read_text()
    assert "holds a run with other arguments" in log
    assert joblist.main([path]) == 1
    assert "1 failed, 1 not started" in capfd.readouterr().out


@pytest.mark.parametrize(
    "line",
    ["python oneshot.py --output_dir o --rate 0.7", "python pert.py --output o/mask.pt -s 1"],
)
def test_a_mask_or_weights_of_another_command_are_left_to_the_script_to_refuse(
    workplace, capfd, line
):
    (workplace / "o").mkdir()
    (workplace / "o" / "mask.pt").write_text("")
    refuse = "import sys\nif '--other' in sys.argv: sys.exit('error: made with other flags')\n"
    for script in ("oneshot.py", "pert.py"):
        (workplace / script).write_text(refuse)
    lines = [line, "# stage 2", "python train.py --mask o/mask.pt --output_dir p"]
    assert joblist.main([str(write_list(workplace, *lines))]) == 0
    assert joblist.main([str(write_list(workplace, *lines))]) == 0
    assert "2 skipped" in capfd.readouterr().out
    lines[0] += " --other"
    assert joblist.main([str(write_list(workplace, *lines))]) == 1
    printed = capfd.readouterr().out
    assert "made with other flags" in printed and "1 failed" in printed


def stand_in(folder: Path, name: str, body: str) -> None:
    """A SLURM command that records its words in `folder`."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "{name} $*" >> "{folder}/slurm"\n{body}\n')
    path.chmod(0o755)


@pytest.fixture
def cluster(workplace, monkeypatch) -> Path:
    """Commands sbatch and scontrol that only record their words, and a link to experiments/."""
    (workplace / "experiments").symlink_to(ROOT / "experiments")
    stand_in(workplace, "sbatch", f'echo "10$(wc -l < {workplace}/slurm)"')
    stand_in(workplace, "scontrol", "")
    monkeypatch.setenv("PATH", f"{workplace / 'bin'}:{os.environ['PATH']}")
    return workplace


ARRAY, ONE = "experiments/slurm/run_array.sbatch", "experiments/slurm/run_one.sbatch"


def sbatch(*words: str, **environment: str) -> subprocess.CompletedProcess:
    command, env = ["bash", *words], os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)


def test_each_stage_is_an_array_that_waits_for_the_stage_before(cluster):
    path = write_list(
        cluster,
        "python train.py --output_dir o/a",
        "python train.py --output_dir o/b",
        "# stage 2",
        "python train.py --output_dir o/c",
    )
    done = sbatch(ARRAY, str(path), "--gres=gpu:1", ARRAY_LIMIT="3")
    assert done.stdout == "stage 1: 2 commands, job 101\nstage 2: 1 commands, job 102\n", (
        done.stderr
    )
    words = f"--gres=gpu:1 {ARRAY} {path}"
    assert (cluster / "slurm").read_text().splitlines() == [
        f"sbatch --parsable --export=ALL,STAGE=1 --array=0-1%3 {words}",
        f"sbatch --parsable --export=ALL,STAGE=2 --array=0-0%3 --dependency=afterany:101 {words}",
    ]


def test_an_array_task_runs_its_command(cluster):
    path = write_list(
        cluster,
        "python train.py --output_dir o/a",
        "# stage 2",
        "python train.py --output_dir o/b",
        "python train.py --output_dir o/c",
    )
    task = {"STAGE": "2", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "7"}
    done = sbatch(ARRAY, str(path), **task)
    assert done.returncode == 0, done.stdout + done.stderr
    assert order(cluster) == ["c"] and not (cluster / "slurm").exists()


def test_a_job_that_saved_a_checkpoint_is_requeued(cluster):
    path = write_list(cluster, "python train.py --output_dir o/slow --wait")
    task = {"STAGE": "1", "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "7"}
    words, env = ["bash", ARRAY, str(path)], os.environ | task
    process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True)
    wait_for(cluster / "o" / "slow" / "started")
    process.send_signal(signal.SIGUSR1)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == joblist.STOPPED and "requeueing job 7" in printed
    assert (cluster / "slurm").read_text() == "scontrol requeue 7\n"


def test_a_failed_job_is_not_requeued(cluster):
    assert sbatch(ONE, "false", SLURM_JOB_ID="7").returncode == 1
    assert not (cluster / "slurm").exists()


@pytest.mark.parametrize("markers", [("# stage 1", "# stage 2", "# stage 3"), ("# stage 3",) * 3])
def test_an_empty_stage_is_not_counted_and_moves_the_stages_after_it_up(cluster, markers):
    first, second, third = markers
    lines = ["python train.py --output_dir o/a", "python train.py --output_dir o/c"]
    path = write_list(cluster, first, lines[0], second, "# removed by hand", third, lines[1])
    assert sbatch(ARRAY, str(path)).stdout.count("1 commands") == 2
    submitted = (cluster / "slurm").read_text()
    for stage in re.findall("STAGE=([0-9]+)", submitted):
        task = {"STAGE": stage, "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "7"}
        done = sbatch(ARRAY, str(path), **task)
        assert done.returncode == 0, done.stdout + done.stderr
    assert order(cluster) == ["a", "c"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("print('x.py: error: no file\\n1 %|#   |\\rmore'); sys.exit(2)", "x.py: error: no file"),
        ("print('a:  9%|#  | 1/9 [0:1<0:2, x=1]x.py: error: no'); sys.exit(2)", "x.py: error: no"),
        ("raise ValueError('odd')", "ValueError: odd"),
        ("sys.exit(1)", "no output"),
        ("os.kill(os.getpid(), 9)", "SIGKILL"),
    ],
)
def test_a_failed_command_shows_its_error_also_in_the_status(workplace, capfd, script, reason):
    (workplace / "fails.py").write_text(f"import os, sys\n{script}\n")
    path = write_list(workplace, "python fails.py --output_dir o/a")
    assert joblist.main([str(path)]) == 1
    line = capfd.readouterr().out.splitlines()[0]
    assert "line 1 failed" in line and reason in line and "0001.log" in line and "%|" not in line
    assert joblist.main([str(path), "--status"]) == 0
    if "KILL" not in reason:
        assert reason in (printed := capfd.readouterr().out) and "1 failed" in printed


@contextlib.contextmanager
def held(folder: Path):
    """Hold the lock on an output folder, as its running script does."""
    folder.mkdir()
    with (folder / files.LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_the_status_and_the_dry_run_run_nothing(workplace, capfd):
    lines = [f"python train.py --output_dir o/{name}" for name in ("a", "b --fail", "c", "d", "e")]
    path = write_list(workplace, *lines[:2])
    assert joblist.main([str(path)]) == 1
    logs = workplace / "list.txt.logs"
    (logs / "0003.log").write_text(f"\n$ {lines[2]}\nhalf")  # its computer lost power
    (logs / "0004.log").write_text("\n$ python train.py --output_dir other --fail\nerror: other\n")
    path, before = write_list(workplace, *lines), order(workplace)
    capfd.readouterr()
    with held(workplace / "o" / "e"):
        assert joblist.main([str(path), "--status"]) == 0
        assert "1 done, 1 running, 1 failed, 1 stopped, 1 to come" in capfd.readouterr().out
        assert joblist.main([str(path), "--dry_run"]) == 0
    listed = capfd.readouterr().out.splitlines()[:-1]
    assert [line.rpartition("o/")[2][0] for line in listed] == ["b", "c", "d", "e"]
    assert listed[-1].startswith("running: line 5")
    assert order(workplace) == before


def test_the_time_left_is_estimated_from_finished_commands_of_the_same_script(workplace, capfd):
    lines = [f"python {name}.py --output_dir o/{name}" for name in ("train", "other", "third")]
    path = write_list(workplace, *lines)
    (workplace / "list.txt.logs").mkdir()
    for number, seconds in ((0, 600), (1, 1800)):
        job = joblist.read(path)[number]
        files.write_json(job.output / "run.json", {"finished": True})
        job.log.write_text(f"\n$ {job.text}\n\njoblist: done after {seconds} s\n")
    path = write_list(workplace, *lines, "python train.py --output_dir o/2")
    assert joblist.main([str(path), "--status", "--jobs", "2"]) == 0
    assert "2 done, 2 to come; about 0:15:00 left" in capfd.readouterr().out  # (20 + 10) / 2


def finished_run(folder: Path, *flags: str) -> str:
    """Write the run.json of a finished run of glue_trans.py; return its command."""
    text = f"--dir pre --do_train --task_name RTE --data_dir data --output_dir {folder}"
    words = [*text.split(), *flags]
    arguments = flag_values(cli.parse(glue_trans.Config, None, words))
    files.write_json(folder / "run.json", {"arguments": arguments, "finished": True})
    return f"python -u {ROOT / 'glue_trans.py'} {' '.join(words)}"


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ("", "done"),
        (" --learning_rate 0.00002", "done"),  # the default, spelled out
        (" --bf16", "to come"),
        (" --seed 7", "to come"),
        (" --seed x", "to come"),
        (" --overwrite_output_dir", "done"),
        (" --overwrite_output_dir && true", "to come"),  # the log shows it
    ],
)
def test_a_run_that_another_list_finished_is_recognized_by_its_arguments(
    workplace, capfd, change, state
):
    line = finished_run(workplace / "o" / "a", "--seed", "3")
    assert joblist.main([str(write_list(workplace, line + change)), "--status"]) == 0
    printed = capfd.readouterr()
    assert printed.out == f"1 {state}\n"


@pytest.fixture
def scripts(workplace, monkeypatch) -> Path:
    """A folder with a small BERT and a task, where `python` counts its starts in a file."""
    tiny.bert(workplace / "bert")
    tiny.glue(workplace / "RTE", "RTE")
    (workplace / "bin").mkdir()
    python = workplace / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho >> {workplace}/starts\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PATH", f"{python.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return workplace


def one_shot(output: str, *more: str) -> str:
    text = f"python {ROOT}/oneshot.py --weight pre --model glue --method random --seed 1"
    return f"{text} --model_name_or_path bert --output_dir {output} {' '.join(more)}"


def test_scripts_of_a_list_import_the_libraries_once(scripts, capfd):
    lines = [one_shot("o/a", "--rate 0.5"), one_shot("o/b", "--rate 7"), one_shot("o/c", "--rate")]
    assert joblist.main([str(write_list(scripts, *lines)), "--jobs", "2"]) == 1
    printed = capfd.readouterr().out
    assert printed.count("exit code 2: oneshot.py: error:") == 2 and "1 done, 2 failed" in printed
    assert (scripts / "starts").read_text().count("\n") == 1
    subprocess.run(one_shot("direct", "--rate 0.5").split(), check=True)
    assert (scripts / "o/a/mask.pt").read_bytes() == (scripts / "direct/mask.pt").read_bytes()


@pytest.mark.parametrize(("hidden", "starts"), [("", 2), ("0", 3)])
def test_a_command_starts_by_itself_with_a_gpu_or_if_a_shell_must_read_it(
    scripts, monkeypatch, hidden, starts
):
    monkeypatch.setattr(preloaded, "GPUS", (str(scripts),))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    lines = [one_shot("o/a", "--rate 0.5"), one_shot("o/b", "--rate 0.5 && true")]
    lines += [one_shot("o/c", "--rate 0.5")]
    assert joblist.main([str(write_list(scripts, *lines))]) == 0
    assert (scripts / "starts").read_text().count("\n") == starts
    assert (scripts / "o/a/mask.pt").read_bytes() == (scripts / "o/b/mask.pt").read_bytes()


def training(scripts: Path) -> tuple[subprocess.Popen[str], Path]:
    """A list with one training, which has begun, and its log."""
    flags = "--dir pre --do_train --task_name RTE --data_dir RTE --model_name_or_path bert"
    flags += " --max_seq_length 32 --max_steps 100000"
    line = f"python -u {ROOT}/glue_trans.py {flags} --output_dir o"
    words = ["bash", str(ROOT / "experiments" / "run_local.sh"), str(write_list(scripts, line))]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    log = scripts / "list.txt.logs" / "0001.log"
    for _ in range(1200):
        if log.exists() and "loss=" in log.read_text():
            break
        time.sleep(0.1)
    return process, log


def test_a_stop_reaches_the_scripts_but_not_the_process_that_forks_them(scripts):
    process, log = training(scripts)
    os.killpg(process.pid, signal.SIGTERM)  # as `timeout` and a lost terminal do
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == joblist.STOPPED and "1 stopped" in printed
    *_, last, _, end = log.read_text().splitlines()
    assert "checkpoint saved in o" in last and end.startswith("joblist: stopped")
    assert list((scripts / "o").glob("state-*.pt"))


def test_a_script_has_its_name_and_ends_with_the_process_that_reports_its_end(scripts):
    process, _ = training(scripts)
    (folder,) = [
        path.parent
        for path in Path("/proc").glob("[0-9]*/comm")
        if path.read_text() == "glue_trans.py\n" and (path.parent / "cwd").resolve() == scripts
    ]
    parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent, signal.SIGKILL)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "failed" in printed and "SIGKILL" in printed
    for _ in range(100):
        if not folder.exists():
            return
        time.sleep(0.1)
    raise AssertionError("the script goes on")


def test_a_missing_script_is_one_line_in_the_log(scripts, capfd):
    line = f"python {ROOT}/no_script.py --output_dir o"
    assert joblist.main([str(write_list(scripts, line))]) == 1
    log = (scripts / "list.txt.logs" / "0001.log").read_text()
    assert "No such file" in capfd.readouterr().out and "Traceback" not in log


def test_a_full_disk_under_the_logs_is_named(workplace, capfd):
    path = write_list(workplace, "python train.py --output_dir o")
    log = workplace / "list.txt.logs" / "0001.log"
    log.parent.mkdir()
    log.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        joblist.main([str(path)])
    assert caught.value.filename == str(log)
