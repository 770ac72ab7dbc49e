"""The lists of commands: what they ask for, that the scripts take them, and how a list is run."""

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import flags as flag_words
from experiments import joblist, paper, plan
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
EVERYTHING = (
    "table2",
    "table3",
    "table4",
    "figure2",
    "figure_rewind",
    "figure_overlap",
    "figure_sparsity",
)


def planned(*words: str) -> list[list[plan.Job]]:
    return plan.plan_of(plan.parse(list(words))).stages()


def flags(job: plan.Job) -> dict[str, str]:
    """Flag -> the word after it."""
    return dict(zip(job.words, job.words[1:], strict=False))


def by_output(stages, ending: str) -> plan.Job:
    [job] = [job for jobs in stages for job in jobs if str(job.output).endswith(ending)]
    return job


def test_table2_has_the_paper_s_numbers():
    first, second = planned("table2", "--tasks", "STS-B", "--seeds", "2", "--shuffles", "layers")
    imp = flags(by_output([first], "STS-B/imp-to90/seed2"))
    assert (imp["--max_steps"], imp["--save_steps"], imp["--learning_rate"]) == (
        "5400",
        "540",
        "2e-05",
    )
    assert (imp["--per_gpu_train_batch_size"], imp["--max_seq_length"], imp["--seed"]) == (
        "32",
        "128",
        "2",
    )
    ticket = flags(by_output([second], "STS-B/pre.imp-STS-B-50-seed2/seed2"))
    assert (
        ticket["--mask_dir"]
        == "runs/bert-base-uncased/STS-B/imp-to90/seed2/checkpoint-2700/mask.pt"
    )
    assert (ticket["--dir"], ticket["--num_train_epochs"], ticket["--seed"]) == ("pre", "3", "2")
    assert flags(by_output([second], "rand.imp-STS-B-50-seed1/seed1"))["--dir"] == "rand"
    shuffled = flags(by_output([second], "layers-seed1.imp-STS-B-50-seed1/seed1"))
    assert shuffled["--weight_pertub"] == str(by_output([first], "weights/layers-seed1.pt").output)
    random = by_output([first], "masks/random-50-seed1")
    assert flags(random)["--method"] == "random" and flags(random)["--rate"] == "0.5"
    assert (
        len(first) == 2 * 2 + 2 + 2 + 1 and len(second) == 2 * 5
    )  # full and IMP; random; shuffled; OMP


def test_squad_and_mlm_have_scripts_and_settings_of_their_own():
    stages = planned("table4", "--tasks", "squad", "mlm", "--seeds", "1", "--data", "d")
    squad, mlm = (
        by_output(stages, "SQuAD/imp-to90/seed1"),
        by_output(stages, "MLM/pre.imp-MLM-50-seed1/seed1"),
    )
    assert squad.words[2] == "squad_trans.py" and "--dir" not in squad.words
    assert (flags(squad)["--save_steps"], flags(squad)["--doc_stride"]) == ("11082", "128")
    assert flags(squad)["--predict_file"] == "d/SQuAD/dev-v1.1.json"
    assert mlm.words[2] == "pretrain_trans.py" and flags(mlm)["--max_steps"] == "10000"
    assert flags(mlm)["--mask_dir"].endswith("MLM/imp-to90/seed1/checkpoint-50000/mask.pt")
    ticket = flags(by_output(stages, "SQuAD/pre.imp-SQuAD-20-seed1/seed1"))
    assert ticket["--mask_dir"].endswith("checkpoint-22164/mask.pt")


def test_table3_rewinds_within_a_round_and_stops_at_the_sparsity():
    stages = planned("table3", "--tasks", "MRPC", "--seeds", "1")
    rewound = by_output(stages, "MRPC/imp-rewind5-to50/seed1")
    assert flags(rewound)["--rewind_steps"] == "17" and flags(rewound)["--max_steps"] == str(
        6 * 345
    )
    place = rewound.words.index("--sparsities")
    assert rewound.words[place + 1 : place + 6] == ("0.1", "0.2", "0.3", "0.4", "0.5")
    assert "--no_rewind" in by_output(stages, "MRPC/imp-norewind-to50/seed1").words
    assert sum("--rewind_steps" in job.words for job in stages[0]) == 4


def test_figure2_crosses_sources_and_targets():
    first, second = planned(
        "figure2", "--tasks", "rte", "cola", "--sources", "MLM", "rte", "--seeds", "1"
    )
    names = sorted("/".join(job.output.parts[-3:-1]) for job in second)
    assert names == [
        "CoLA/pre.imp-MLM-70-seed1",
        "CoLA/pre.imp-RTE-70-seed1",
        "CoLA/pre.omp-70",
        "RTE/pre.imp-MLM-70-seed1",
        "RTE/pre.imp-RTE-70-seed1",
        "RTE/pre.omp-70",
    ]
    assert {job.words[2] for job in first if "imp-to90" in str(job.output)} == {
        "LT_pretrain.py",
        "LT_glue.py",
    }


def test_rewound_subnetworks_take_their_own_theta_i():
    stages = planned("figure_rewind", "--tasks", "rte", "--seeds", "1", "--sources", "squad")
    job = by_output(stages, "RTE/rewound.imp-rewind20-SQuAD-70-seed1/seed1")
    folder = "runs/bert-base-uncased/SQuAD/imp-rewind20-to70/seed1"
    assert flags(job)["--weight_pertub"] == f"{folder}/rewind_weights.pt"
    assert flags(job)["--mask_dir"] == f"{folder}/checkpoint-{7 * 11082}/mask.pt"


def test_changes_show_in_the_folders_so_that_nothing_is_taken_for_something_else():
    words = [
        "table4",
        "--tasks",
        "rte",
        "cola",
        "--seeds",
        "1",
        "--epochs",
        "5",
        "--lr",
        "rte=1e-4",
        "--flags=--bf16",
    ]
    stages = planned(
        *words, "--model", "models/mini-lm", "--imp_to", "0.6", "--sparsity", "0.55", "rte=0.3"
    )
    job = by_output(stages, "RTE-epochs5-lr0.0001/pre.imp-RTE-epochs5-lr0.0001-30-seed1/seed1")
    assert str(job.output).startswith("runs/mini-lm-bf16/") and job.words[-1] == "--bf16"
    assert flags(job)["--mask_dir"].endswith(
        "imp-to60/seed1/checkpoint-1170/mask.pt"
    )  # round 3 of 5 * 78 steps
    job = by_output(stages, "CoLA-epochs5/pre.imp-CoLA-epochs5-55-seed1/seed1")
    assert flags(job)["--mask_dir"].endswith(f"imp-to55/seed1/checkpoint-{6 * 5 * 268}/mask.pt")
    assert flags(job)["--learning_rate"] == "2e-05"


def test_steps_replace_epochs():
    stages = planned("table4", "--tasks", "wnli", "--seeds", "1", "--steps", "20")
    assert flags(by_output(stages, "WNLI-steps20/pre.full/seed1"))["--max_steps"] == "20"
    assert flags(by_output(stages, "WNLI-steps20/imp-to90/seed1"))["--save_steps"] == "20"
    stages = planned(
        "table4",
        "--tasks",
        "wnli",
        "--seeds",
        "1",
        "--steps",
        "WNLI=20",
        "--lr",
        "1e-4",
        "--batch",
        "8",
    )
    assert (
        flags(by_output(stages, "WNLI-steps20-lr0.0001-batch8/imp-to90/seed1"))[
            "--per_gpu_train_batch_size"
        ]
        == "8"
    )


@pytest.mark.parametrize("what", EVERYTHING)
def test_every_job_has_one_output_and_needs_only_earlier_ones(what, tmp_path, capsys):
    plan.main([what, "--seeds", "2", "--preset", "mini", "--tasks", "mnli", "squad", "mlm"])
    path = tmp_path / "list"
    path.write_text(capsys.readouterr().out)
    jobs = joblist.read(path)  # raises where two commands share a folder
    outputs = {job.output: job for job in jobs}
    for job in jobs:
        for needed in (other for other in jobs if other is not job and job.needs(other)):
            assert needed.stage < job.stage
        told = {"--mask_dir", "--weight_pertub"}
        for word in [
            after
            for word, after in zip(shlex.split(job.text), shlex.split(job.text)[1:], strict=False)
            if word in told
        ]:
            assert any(place in outputs for place in (Path(word), *Path(word).parents))


def test_the_scripts_take_every_command(monkeypatch):
    seen = {}
    for what in EVERYTHING:
        for preset in ("paper", "mini"):
            for jobs in planned(what, "--seeds", "1", "--preset", preset):
                for job in jobs:
                    words = [word for word in job.words[1:] if word != "-u"]
                    kind = (
                        words[0],
                        preset,
                        tuple(word for word in words if word.startswith("--")),
                    )
                    seen.setdefault(kind, words)
    for words in seen.values():
        monkeypatch.setattr(sys, "argv", words)
        arguments = vars(importlib.import_module(words[0].removesuffix(".py")).parse_args())
        assert {name for name, _ in flag_words.given(words)} <= arguments.keys()
        assert flag_words.differing(flag_words.given(words), arguments) == {}
    assert {kind[0] for kind in seen} == {
        "LT_glue.py",
        "LT_pretrain.py",
        "squad_trans.py",
        "glue_trans.py",
        "pretrain_trans.py",
        "oneshot.py",
        "pertub_weight.py",
    }


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tasks", "MNLI2"], "'MNLI2' is no task"),
        (["--seeds", "0"], "--seeds 0"),
        (["--lr", "x"], "--lr x"),
        (["--epochs", "rte=-1"], "--epochs rte=-1"),
        (["--sparsity", "70"], "--sparsity 70"),
        (["--steps", "foo=3"], "'foo' is no task"),
        (["--batch", "8"], "give --steps for"),
        (["--batch", "0", "--steps", "9"], "--batch 0"),
        (["--imp_to", "0.123"], "--imp_to 0.123"),
    ],
)
def test_bad_flags_are_named(words, told):
    with pytest.raises(UserError, match=told):
        planned("table2", *words)


def test_mnli_trains_for_the_steps_of_the_paper():
    assert paper.RECIPES["mnli"].steps() == 36816 and paper.RECIPES["wnli"].steps() == 60


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
    (folder / "run.json").write_text(json.dumps({"finished": "--half" not in sys.argv}))
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


def test_a_list_runs_by_stages_and_goes_on_after_a_failure(workplace, capfd):
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
    told = capfd.readouterr().out
    assert order(workplace)[0] == "mask" and sorted(order(workplace)[1:]) == [
        "bad",
        "good",
        "other",
    ]
    assert "line 6 failed" in told and "exit code 3" in told
    assert "line 9 not started: o/last (needs o/bad, line 6, which is not finished)" in told
    assert "3 done, 1 failed, 1 not started" in told
    assert "failed: line 6: python train.py --output_dir o/bad --fail" in told
    assert "o/bad --fail" in (workplace / "list.txt.logs" / "0006.log").read_text()


def test_a_second_run_skips_what_is_finished(workplace, capfd):
    path = write_list(
        workplace,
        "python oneshot.py --output_dir o/mask",
        "python train.py --output_dir o/a",
        "python train.py --output_dir o/b --half",
    )
    assert joblist.main([str(path)]) == 1  # o/b says it is not finished
    assert "ended well, but o/b is not finished" in capfd.readouterr().out
    assert joblist.main([str(path)]) == 1
    assert "2 skipped, 1 failed" in capfd.readouterr().out
    assert order(workplace) == ["mask", "a", "b", "b"]


def test_folders_whose_names_begin_alike_are_not_confused(workplace, capfd):
    path = write_list(
        workplace,
        "python train.py --output_dir o/seed1 --fail",
        "python train.py --output_dir o/seed10",
        "# stage 2",
        "python train.py --mask o/seed10/mask.pt --output_dir o/c",
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
    assert (
        joblist.main([str(path), "--stage", "2", "--number", "1"]) == 1
    )  # what it needs is not there
    assert joblist.main([str(path), "--stage", "2", "--number", "0"]) == 0
    assert order(workplace) == ["b"]
    with pytest.raises(UserError, match="no such command"):
        joblist.main([str(path), "--stage", "2", "--number", "2"])


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["# only notes"], "no command in it"),
        (["python 'x"], "line 1: No closing quotation"),
        (["a --output_dir o", "b --output_dir o"], "line 1: another line writes to o too"),
    ],
)
def test_lists_that_cannot_be_run(workplace, lines, told):
    with pytest.raises(UserError, match=told):
        joblist.main([str(write_list(workplace, *lines))])


def test_run_local_stops_its_commands_when_it_is_stopped(workplace):
    path = write_list(
        workplace,
        "python train.py --output_dir o/slow --wait",
        "python train.py --output_dir o/next",
    )
    words = ["bash", str(ROOT / "experiments" / "run_local.sh"), str(path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    for _ in range(300):
        if (workplace / "o" / "slow" / "started").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=30)
    assert process.returncode == joblist.STOPPED and "2 stopped" in told
    assert not (workplace / "order").exists()


def test_run_local_names_a_list_that_is_not_there(workplace):
    done = subprocess.run(
        ["bash", str(ROOT / "experiments" / "run_local.sh"), "nolist"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "nolist" in done.stderr and done.stderr.count("\n") == 1


def test_finished_is_read_from_run_json(workplace):
    [job] = joblist.read(write_list(workplace, "python train.py --output_dir o/mask-0.5 --seed 1"))
    assert not job.finished()
    (workplace / "o" / "mask-0.5").mkdir(parents=True)
    for text, verdict in (("{", False), ("[]", False), (json.dumps({"finished": True}), True)):
        (workplace / "o" / "mask-0.5" / "run.json").write_text(text)
        assert job.finished() is verdict


RECORDED = {
    "init": "pre",
    "learning_rate": 2e-5,
    "max_steps": 9,
    "seed": 1,
    "model_name_or_path": "a/bert",
    "bf16": True,
    "compile": False,
    "sparsities": [0.1, 0.25],
    "mask_dir": None,
    "threads": 4,
    "output_dir": "elsewhere",
}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", None),
        (
            "--dir pre --learning_rate 2e-5 --max_steps=9 --bf16 --sparsities .1 0.25 --no_compile",
            None,
        ),
        ("--seed 2 --seed 1", None),
        ("--seed 01 > log 2>&1", None),
        ("--seed 1 && echo --seed 2", None),
        ("--seed $SEED --model_name_or_path ~/bert", None),
        ("--threads 2 --overwrite_cache", None),
        ("--unheard 3", None),
        ("--dir rand", "--init pre there, rand here"),
        ("--learning_rate 2e-4", "--learning_rate 2e-05 there, 2e-4 here"),
        ("--max_steps=-1", "--max_steps 9 there, -1 here"),
        ("--seed 1 --seed 2", "--seed 1 there, 2 here"),
        ("--seed", "--seed 1 there, True here"),
        ("--dir=rand", "--init pre there, rand here"),
        ("--seed x", "--seed 1 there, x here"),
        ("--model_name_or_path b/bert", "--model_name_or_path a/bert there, b/bert"),
        ("--compile", "--compile False there, True here"),
        ("--bf16 --compile --no_compile --seed 3", "--seed 1 there, 3"),
        ("--sparsities 0.1 0.3", "--sparsities [0.1, 0.25] there, 0.1 0.3 here"),
        ("--sparsities 0.1", "--sparsities"),
        ("--mask_dir m", "--mask_dir None there, m here"),
    ],
)
def test_finished_is_only_what_was_run_with_the_flags_of_the_command(workplace, words, told):
    [job] = joblist.read(write_list(workplace, f"python -u train.py --output_dir o/a {words}"))
    (workplace / "o" / "a").mkdir(parents=True)
    for finished in (True, False):
        (workplace / "o" / "a" / "run.json").write_text(
            json.dumps({"arguments": RECORDED, "finished": finished})
        )
        assert job.finished() is (finished and told is None)
    assert [text[: len(told or "")] for text in job.differing()] == ([told] if told else [])


def test_flags_are_those_behind_the_script():
    words = shlex.split(
        "SEED=3 torchrun --nproc_per_node 2 --seed 9 train.py --mask_dir=a=b --local-rank 0 --bf16"
    )
    assert flag_words.given(words) == (("mask_dir", ("a=b",)), ("local_rank", ("0",)), ("bf16", ()))
    assert flag_words.given(["make", "--seed", "1"]) == ()


def test_a_folder_with_a_run_of_other_arguments_is_left_to_the_script_to_refuse(workplace, capfd):
    (workplace / "train.py").write_text(
        STUB + "sys.exit('holds a run with other arguments' if '--data' in sys.argv else 0)"
    )
    (workplace / "o" / "a").mkdir(parents=True)
    recorded = {"arguments": {"data": "data1"}, "finished": True}
    (workplace / "o" / "a" / "run.json").write_text(json.dumps(recorded))
    path = write_list(
        workplace,
        "python train.py --output_dir o/a --data data2",
        "# stage 2",
        "python train.py --output_dir o/b --mask o/a/mask.pt",
    )
    assert (
        joblist.main([str(path), "--stage", "2"]) == 1
    )  # the mask of other data is not what o/b needs
    assert (
        "line 3 not started: o/b (needs o/a, line 1, which is not finished)"
        in capfd.readouterr().out
    )
    assert joblist.main([str(path), "--stage", "1"]) == 1
    assert "line 1 failed" in capfd.readouterr().out and order(workplace) == ["a"]
    assert (
        "holds a run with other arguments" in (workplace / "list.txt.logs" / "0001.log").read_text()
    )


OMP = {"method": "omp", "weight": "pre", "seed": 42, "model": "a/bert", "sparsity": 0.70004}
NOISE = {"mode": "noise", "sigma": 0.02, "seed": 1, "model": "a/bert"}


@pytest.mark.parametrize(
    ("info", "words", "told"),
    [
        (
            OMP,
            "oneshot.py --model glue --rate 0.7 --method magnitude --seed 0 --model_name_or_path a/bert",
            None,
        ),
        (OMP, "oneshot.py --rate 0.71", "--rate 0.70004 there, 0.71 here"),
        (OMP, "oneshot.py --method random", "--method magnitude there, random here"),
        (
            OMP,
            "oneshot.py --model_name_or_path b/bert",
            "--model_name_or_path a/bert there, b/bert here",
        ),
        (OMP | {"weight": "rand"}, "oneshot.py --seed 1", "--seed 42 there, 1 here"),
        (OMP | {"method": "random"}, "oneshot.py --seed 1", "--seed 42 there, 1 here"),
        (None, "oneshot.py --rate 0.7", None),
        (
            NOISE,
            "pertub_weight.py --mode noise --seed 1 --sigma 2e-2 --model_name_or_path a/bert",
            None,
        ),
        (NOISE, "pertub_weight.py --mode layers", "--mode noise there, layers here"),
        (NOISE, "pertub_weight.py --sigma 0.1", "--sigma 0.02 there, 0.1 here"),
    ],
)
def test_a_mask_or_weights_made_otherwise_are_neither_taken_nor_overwritten(
    workplace, capfd, info, words, told
):
    place = workplace / "o" / "mask.pt"
    place.parent.mkdir()
    place.write_text("")
    if info:
        place.with_name("mask.pt.json").write_text(json.dumps(info))
    where = "--output_dir o" if words.startswith("oneshot") else "--output o/mask.pt"
    path = write_list(
        workplace,
        f"python {words} {where}",
        "# stage 2",
        "python train.py --mask o/mask.pt --output_dir p",
    )
    assert joblist.main([str(path)]) == (1 if told else 0)
    shown = capfd.readouterr().out
    if told:
        assert (
            f"made with other arguments: {told}; remove it or give another place" in shown
            and "1 not started" in shown
        )
    else:
        assert "line 1 skipped" in shown and order(workplace) == ["p"]


def stand_in(folder: Path, name: str, body: str) -> None:
    """A SLURM command that notes its words in `folder`."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "{name} $*" >> "{folder}/slurm"\n{body}\n')
    path.chmod(0o755)


@pytest.fixture
def cluster(workplace, monkeypatch) -> Path:
    """sbatch and scontrol that only note what they are asked, and the repository's experiments at the usual place."""
    (workplace / "experiments").symlink_to(ROOT / "experiments")
    stand_in(workplace, "sbatch", f'echo "10$(wc -l < {workplace}/slurm)"')
    stand_in(workplace, "scontrol", "")
    monkeypatch.setenv("PATH", f"{workplace / 'bin'}:{os.environ['PATH']}")
    return workplace


def sbatch(*words: str, **environment: str) -> subprocess.CompletedProcess:
    command = ["bash", *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=os.environ | environment
    )


def test_each_stage_is_an_array_that_waits_for_the_one_before(cluster):
    path = write_list(
        cluster,
        "python train.py --output_dir o/a",
        "python train.py --output_dir o/b",
        "# stage 2",
        "python train.py --output_dir o/c",
    )
    done = sbatch("experiments/slurm/run_array.sbatch", str(path), "--gres=gpu:1", ARRAY_LIMIT="3")
    assert done.stdout == "stage 1: 2 commands, job 101\nstage 2: 1 commands, job 102\n", (
        done.stderr
    )
    script = f"experiments/slurm/run_array.sbatch {path}"
    assert (cluster / "slurm").read_text().splitlines() == [
        f"sbatch --parsable --export=ALL,STAGE=1 --array=0-1%3 --gres=gpu:1 {script}",
        f"sbatch --parsable --export=ALL,STAGE=2 --array=0-0%3 --dependency=afterany:101 --gres=gpu:1 {script}",
    ]


def test_an_array_task_runs_its_command(cluster):
    path = write_list(
        cluster,
        "python train.py --output_dir o/a",
        "# stage 2",
        "python train.py --output_dir o/b",
        "python train.py --output_dir o/c",
    )
    done = sbatch(
        "experiments/slurm/run_array.sbatch",
        str(path),
        STAGE="2",
        SLURM_ARRAY_TASK_ID="1",
        SLURM_JOB_ID="7",
    )
    assert done.returncode == 0 and order(cluster) == ["c"] and not (cluster / "slurm").exists()


def test_a_job_that_saved_its_state_queues_again(cluster):
    path = write_list(cluster, "python train.py --output_dir o/slow --wait")
    words = ["bash", "experiments/slurm/run_array.sbatch", str(path)]
    environment = os.environ | {"STAGE": "1", "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "7"}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    for _ in range(300):
        if (cluster / "o" / "slow" / "started").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    told, _ = process.communicate(timeout=30)
    assert process.returncode == joblist.STOPPED and "queueing job 7 again" in told
    assert (cluster / "slurm").read_text() == "scontrol requeue 7\n"


def test_a_failed_job_does_not_queue_again(cluster):
    assert sbatch("experiments/slurm/run_one.sbatch", "false", SLURM_JOB_ID="7").returncode == 1
    assert not (cluster / "slurm").exists()
