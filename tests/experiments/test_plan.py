"""The lists of commands: what they contain, and that the scripts accept them."""

import contextlib
import dataclasses
import importlib
import io
import itertools
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import joblist, paper, plan
from experiments.command_list import Command
from utils import cli
from utils.errors import UserError

EVERYTHING = tuple(plan.BUILDERS)
Stages = list[list[Command]]


def planned(*words: str) -> Stages:
    return plan.command_list(plan.parse(list(words))).stages()


def flags(command: Command) -> dict[str, str]:
    """Flag -> the word after it."""
    return dict(itertools.pairwise(command.words))


def by_output(stages: Stages, ending: str) -> Command:
    found = [c for commands in stages for c in commands if str(c.output).endswith(ending)]
    (command,) = found
    return command


def test_table2_has_the_papers_numbers():
    words = ["--tasks", "STS-B", "--seeds", "2", "--shuffles", "layers"]
    first, second = planned("table2", *words)
    imp = flags(by_output([first], "STS-B/imp-to90/seed2"))
    assert (imp["--max_steps"], imp["--save_steps"]) == ("5400", "540")
    assert (imp["--learning_rate"], imp["--per_gpu_train_batch_size"]) == ("2e-05", "32")
    assert (imp["--max_seq_length"], imp["--seed"]) == ("128", "2")
    ticket = flags(by_output([second], "STS-B/pre.imp-STS-B-50-seed2/seed2"))
    mask = "runs/bert-base-uncased/STS-B/imp-to90/seed2/checkpoint-2700/mask.pt"
    assert ticket["--mask_dir"] == mask
    assert (ticket["--dir"], ticket["--num_train_epochs"], ticket["--seed"]) == ("pre", "3", "2")
    assert flags(by_output([second], "rand.imp-STS-B-50-seed1/seed1"))["--dir"] == "rand"
    shuffled = flags(by_output([second], "layers-seed1.imp-STS-B-50-seed1/seed1"))
    assert shuffled["--weight_pertub"] == str(by_output([first], "weights/layers-seed1.pt").output)
    random = by_output([first], "masks/random-50-seed1")
    assert flags(random)["--method"] == "random" and flags(random)["--rate"] == "0.5"
    assert len(first) == 2 * 2 + 2 + 2 + 1  # full and IMP; random; shuffled; OMP
    assert len(second) == 2 * 5


@pytest.mark.parametrize("controls", ["none", "layerwise", "shuffle", "all"])
def test_controls_with_the_layers_sparsities_are_trained_if_requested(controls):
    words = ["--tasks", "STS-B", "--seeds", "2", "--controls", controls]
    commands = list(itertools.chain(*planned("table2", *words)))
    added = [c for c in commands if "layerwise" in str(c.output) or "shuffled-" in str(c.output)]
    masks = [command for command in added if command.words[1] == "oneshot.py"]
    expected = {"none": 0, "layerwise": 1, "shuffle": 2, "all": 3}[controls]
    assert len(masks) == expected  # the layer-wise mask has no seed
    trained = [command for command in added if command not in masks]
    assert len(trained) == {"none": 0, "layerwise": 2, "shuffle": 2, "all": 4}[controls]
    for command in trained:
        (mask,) = [mask for mask in masks if str(mask.output) in flags(command)["--mask_dir"]]
        assert mask in command.needs
        if "shuffled" in str(mask.output):
            assert flags(mask)["--seed"] == flags(command)["--seed"]
            assert f"seed{flags(mask)['--seed']}/checkpoint" in flags(mask)["--mask_dir"]


def test_connectivity_trains_each_ticket_with_two_data_orders():
    words = ["--tasks", "STS-B", "--seeds", "2", "--sparsities", "0", "0.3"]
    stages = planned("connectivity", *words)
    lines = [c for stage in stages for c in stage if "connectivity" in c.words[1]]
    assert len(lines) == 4
    for line in lines:
        one, other = line.needs
        assert [str(run.output) for run in (one, other)] == list(line.words[2:4])
        assert set(one.words) ^ set(other.words) >= {str(one.output), str(other.output)}
        seeds = [flags(run)["--data_seed"] for run in (one, other)]
        assert seeds == ["1", "2"] and flags(one)["--seed"] == flags(other)["--seed"]
        assert flags(one).get("--mask_dir") == flags(other).get("--mask_dir")
        assert "--save_total_limit" not in one.words  # the model stays
    assert sorted("--mask_dir" in line.needs[0].words for line in lines) == [False] * 2 + [True] * 2


def test_seeds_share_the_masks_of_fewer_imp_runs():
    words = ["--tasks", "RTE", "--seeds", "3", "--mask_seeds", "2", "--shuffles"]
    first, second = planned("table2", *words)
    found = [
        str(c.output.relative_to("runs/bert-base-uncased/RTE"))
        for c in first
        if c.words[2] == "LT_glue.py"
    ]
    assert found == ["imp-to90/seed1", "imp-to90/seed2"]
    for seed, mask_seed in ((1, 1), (2, 2), (3, 1)):
        ticket = flags(by_output([second], f"RTE/pre.imp-RTE-60-seed{mask_seed}/seed{seed}"))
        assert (
            ticket["--seed"] == str(seed) and f"/imp-to90/seed{mask_seed}/" in ticket["--mask_dir"]
        )


def test_each_seed_shuffles_a_shared_mask_into_a_folder_of_its_own():
    words = ["--tasks", "RTE", "--seeds", "3", "--mask_seeds", "1", "--controls", "shuffle"]
    made = {c.output: c for c in itertools.chain(*planned("table2", *words))}
    masks = [c for output, c in made.items() if output.name.startswith("shuffled-")]
    assert sorted(flags(c)["--seed"] for c in masks) == ["1", "2", "3"]


def test_squad_and_mlm_have_scripts_and_settings_of_their_own():
    stages = planned("table4", "--tasks", "squad", "mlm", "--seeds", "1", "--data", "d")
    squad = by_output(stages, "SQuAD/imp-to90/seed1")
    mlm = by_output(stages, "MLM/pre.imp-MLM-50-seed1/seed1")
    assert squad.words[2] == "squad_trans.py" and "--dir" not in squad.words
    assert (flags(squad)["--save_steps"], flags(squad)["--doc_stride"]) == ("11082", "128")
    assert flags(squad)["--predict_file"] == "d/SQuAD/dev-v1.1.json"
    assert mlm.words[2] == "pretrain_trans.py" and flags(mlm)["--max_steps"] == "10000"
    assert flags(mlm)["--mask_dir"].endswith("MLM/imp-to90/seed1/checkpoint-50000/mask.pt")
    ticket = flags(by_output(stages, "SQuAD/pre.imp-SQuAD-20-seed1/seed1"))
    assert ticket["--mask_dir"].endswith("checkpoint-22164/mask.pt")


@pytest.mark.parametrize("task", ["squad", "mlm", "mrpc"])
def test_without_data_the_commands_read_the_hub(task):
    words = planned("table4", "--tasks", task, "--seeds", "1")[0][0].words
    assert not {"--data_dir", "--train_file", "--train_data_file"} & {*words}
    assert ("--mlm" in words) == (task == "mlm") and ("--task_name" in words) == (task == "mrpc")


@pytest.mark.parametrize("words", [["--tasks", "all"], ["--tasks", "RTE", "All"]])
def test_all_stands_for_the_eleven_tasks_of_the_paper(words):
    def outputs(*words: str) -> set[Path]:
        return {c.output for stage in planned("figure2", "--seeds", "1", *words) for c in stage}

    assert outputs(*words) == outputs()
    assert outputs("--tasks", "rte", "--sources", "all") > outputs("--tasks", "rte")


def test_table3_rewinds_within_a_round_and_stops_at_the_sparsity():
    stages = planned("table3", "--tasks", "MRPC", "--seeds", "1")
    rewound = by_output(stages, "MRPC/imp-rewind5-to50/seed1")
    assert flags(rewound)["--rewind_steps"] == "17" and flags(rewound)["--max_steps"] == "2070"
    at = rewound.words.index("--sparsities")
    assert rewound.words[at + 1 : at + 6] == ("0.1", "0.2", "0.3", "0.4", "0.5")
    assert "--no_rewind" in by_output(stages, "MRPC/imp-norewind-to50/seed1").words
    assert sum("--rewind_steps" in command.words for command in stages[0]) == 4


@pytest.mark.parametrize("what", ["table3", "figure_rewind"])
def test_no_training_keeps_its_models(what):
    commands = list(itertools.chain(*planned(what, "--seeds", "1")))
    trainings = [command for command in commands if "--do_train" in command.words]
    assert trainings
    assert {flags(command)["--save_total_limit"] for command in trainings} == {"0"}


def test_figure2_crosses_sources_and_targets():
    words = ["--tasks", "rte", "cola", "--sources", "MLM", "rte", "--seeds", "1"]
    first, second = planned("figure2", *words)
    names = sorted("/".join(command.output.parts[-3:-1]) for command in second)
    assert names == [
        "CoLA/pre.imp-MLM-70-seed1",
        "CoLA/pre.imp-RTE-70-seed1",
        "CoLA/pre.omp-70",
        "RTE/pre.imp-MLM-70-seed1",
        "RTE/pre.imp-RTE-70-seed1",
        "RTE/pre.omp-70",
    ]
    scripts = {command.words[2] for command in first if "imp-to90" in str(command.output)}
    assert scripts == {"LT_pretrain.py", "LT_glue.py"}


def test_rewound_subnetworks_use_their_own_theta_i():
    stages = planned("figure_rewind", "--tasks", "rte", "--seeds", "1", "--sources", "squad")
    command = by_output(stages, "RTE/rewound.imp-rewind20-SQuAD-70-seed1/seed1")
    folder = "runs/bert-base-uncased/SQuAD/imp-rewind20-to70/seed1"
    assert flags(command)["--weight_pertub"] == f"{folder}/rewind_weights.pt"
    assert flags(command)["--mask_dir"] == f"{folder}/checkpoint-{7 * 11082}/mask.pt"


def test_changes_show_in_the_folders_so_that_no_run_is_confused_with_another():
    words = ["--tasks", "rte", "cola", "--seeds", "1", "--epochs", "5", "--lr", "rte=1e-4"]
    words += ["--flags=--bf16", "--model", "models/mini-lm", "--imp_to", "0.6"]
    stages = planned("table4", *words, "--sparsity", "0.55", "rte=0.3")
    name = "RTE-epochs5-lr0.0001"
    command = by_output(stages, f"{name}/pre.imp-{name}-30-seed1/seed1")
    assert str(command.output).startswith("runs/mini-lm-bf16/") and command.words[-1] == "--bf16"
    round_3 = "imp-to60/seed1/checkpoint-1170/mask.pt"  # of 5 * 78 steps
    assert flags(command)["--mask_dir"].endswith(round_3)
    command = by_output(stages, "CoLA-epochs5/pre.imp-CoLA-epochs5-55-seed1/seed1")
    round_6 = f"imp-to55/seed1/checkpoint-{6 * 5 * 268}/mask.pt"
    assert flags(command)["--mask_dir"].endswith(round_6)
    assert flags(command)["--learning_rate"] == "2e-05"


def test_steps_replace_epochs():
    words = ["table4", "--tasks", "wnli", "--seeds", "1", "--steps"]
    stages = planned(*words, "20")
    assert flags(by_output(stages, "WNLI-steps20/pre.full/seed1"))["--max_steps"] == "20"
    assert flags(by_output(stages, "WNLI-steps20/imp-to90/seed1"))["--save_steps"] == "20"
    stages = planned(*words, "WNLI=20", "--lr", "1e-4", "--batch", "8")
    imp = flags(by_output(stages, "WNLI-steps20-lr0.0001-batch8/imp-to90/seed1"))
    assert imp["--per_gpu_train_batch_size"] == "8"


@pytest.mark.parametrize("what", EVERYTHING)
def test_every_command_has_one_output_and_needs_only_earlier_ones(what, tmp_path, capsys):
    plan.main([what, "--seeds", "2", "--preset", "mini", "--tasks", "mnli", "squad", "mlm"])
    path = tmp_path / "list"
    path.write_text(capsys.readouterr().out)
    jobs = joblist.read(path)  # raises if two commands share a folder
    outputs = {job.output: job for job in jobs}
    for job in jobs:
        needed = [other for other in jobs if other is not job and other.output in job.paths]
        assert all(other.stage < job.stage for other in needed)
        for flag, word in itertools.pairwise(shlex.split(job.text)):
            if flag in ("--mask_dir", "--weight_pertub"):
                assert any(path in outputs for path in (Path(word), *Path(word).parents))


def parsed(words: list[str]) -> dict[str, object]:
    """Name -> value of every flag, as the script of a command parses it."""
    module = importlib.import_module(words[0].removesuffix(".py"))
    config = cli.parse(module.Config, None, words[1:])
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        values |= vars(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return values


def given_flags(words: list[str]) -> dict[str, list[str]]:
    """Name -> words of every flag of a command."""
    found: dict[str, list[str]] = {}
    for word in words[1:]:
        if word.startswith("--"):
            found[word.removeprefix("--")] = last = []
        else:
            last.append(word)
    return found


def test_the_scripts_accept_every_command():
    seen = {}
    for what, preset in itertools.product(EVERYTHING, ("paper", "mini")):
        more = ["--controls", "all"] if what == "table2" else []
        more += ["--seeds", "1", "--preset", preset]
        for command in itertools.chain(*planned(what, *more)):
            words = [word for word in command.words[1:] if word != "-u"]
            if words[0].startswith("experiments/"):
                continue
            names = tuple(word for word in words if word.startswith("--"))
            seen.setdefault((words[0], preset, names), words)
    for words in seen.values():
        values = parsed(words)
        for name, texts in given_flags(words).items():
            value = values[name]
            if isinstance(value, bool):
                assert (value, texts) == (True, [])
                continue
            several = value if isinstance(value, list | tuple) else [value]
            assert [type(each)(text) for each, text in zip(several, texts, strict=True)] == [
                *several
            ]
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
    ("words", "message"),
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
        (["--imp_to", "0.001"], "--imp_to 0.001"),
        (["--seeds", "1000000000"], "--seeds 1000000000"),
        (["--flags", "--a 'b"], "--flags --a 'b"),
        *((["--seeds", "2", "--mask_seeds", word], f"--mask_seeds {word}") for word in "03"),
        *((["--imp_to", word], f"--imp_to {word}") for word in ("nan", "inf", "7")),
        *(
            ([f"--{flag}", f"rte={word}"], f"--{flag} rte={word}")
            for flag in (*plan.CHANGES, "sparsity")
            for word in ("nan", "inf", "-inf", "1e300", "9" * 20, "")
        ),
    ],
)
def test_bad_flags_are_named(words, message):
    with pytest.raises(UserError, match=message):
        planned("table2", *words)


@pytest.mark.parametrize(
    ("what", "words", "message"),
    [
        ("table3", ["--controls", "all"], "--controls has no effect on table3"),
        ("figure2", ["--shuffles", "noise"], "--shuffles has no effect on figure2"),
        ("figure2", ["--shuffles"], "--shuffles has no effect on figure2"),
        ("table2", ["--sparsities", "0.5"], "--sparsities has no effect on table2"),
        ("table2", ["--controls", "all", "--shuffles"], ""),
        ("connectivity", ["--sparsities", "0.5"], ""),
    ],
)
def test_a_flag_without_effect_gives_a_warning(what, words, message, capsys):
    plan.main([what, "--seeds", "1", *words])
    assert message in (warnings := capsys.readouterr().err) and bool(message) == bool(warnings)


def test_a_line_needs_the_models_of_its_trainings():
    with pytest.raises(UserError, match="connectivity needs the models"):
        planned("connectivity", "--flags=--save_total_limit=0")
    assert planned("connectivity", "--flags=--save_total_limit 1", "--tasks", "RTE")


@pytest.mark.parametrize("flag", ["--flags", "--model", "--out", "--data", "--tasks"])
@pytest.mark.parametrize("end", ["\n", "\r", "\x0b", "\x85", "\u2028", "\udcff"])
def test_a_line_break_becomes_no_command(flag, end, capsys):
    with pytest.raises(UserError, match="a command a line"):
        plan.main(["table2", flag, f"a{end}rm -rf x"])
    assert capsys.readouterr().out == ""


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1))
def test_the_shell_reads_every_word_as_given(word):
    name = f"x/{word.replace('/', '')}"
    words = ["table4", "--tasks", "rte", "--seeds", "1", f"--data={name}", f"--model={name}"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        plan.main([*words, f"--out={name}", "--flags", shlex.quote(name)])
    lines = printed.getvalue().split("\n")[:-1]
    commands = [line for line in lines if not line.startswith("# ")]
    script = "python() { printf '%s\\0' \"$@\"; }\n" + "\n".join(commands)
    done = subprocess.run(["bash", "-c", script], capture_output=True)
    read = done.stdout.decode().split("\0")
    assert done.stderr == b"" and read.count(name) == 2 * len(commands)


def test_mnli_trains_for_the_steps_of_the_paper():
    assert paper.HYPERPARAMETERS["mnli"].steps() == 36816
    assert paper.HYPERPARAMETERS["wnli"].steps() == 60
