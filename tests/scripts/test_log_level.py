"""--log_level: which messages appear on stderr, and how; results on stdout are the same."""

import logging
import re

import launch
import pytest
import transformers
from glue_runs import command, evaluation, find_nine_tickets, make_data
from refusals import assert_refused


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory)


@pytest.mark.parametrize(
    ("level", "kinds"), [("debug", ["INFO"]), ("info", ["INFO"]), ("warning", []), ("error", [])]
)
def test_notes_have_a_time_stamp_and_a_level(data, tmp_path_factory, level, kinds):
    finished, _ = find_nine_tickets(tmp_path_factory)
    flags = [*command(data, finished, "--max_steps", 40), "--log_level", level]
    ended = launch.run("LT_glue.py", *flags)
    assert ended.code == 0 and ended.out == ""
    ours = [line for line in ended.err.splitlines() if "this run is finished" in line]
    assert [re.fullmatch(rf"{launch.TIME} (\w+) .*", line)[1] for line in ours] == kinds


@pytest.mark.parametrize(("level", "count"), [("warning", 1), ("error", 0)])
def test_results_on_stdout_do_not_depend_on_the_level(data, tmp_path, level, count):
    """A half-written row gives a warning; a score is no message."""
    flags = ["--dir", "pre", "--max_steps", 2, "--log_level", level]
    words = command(data, tmp_path / "out", *flags)
    wanted = launch.done("glue_trans.py", *words[:-2])
    (tmp_path / "out" / "results.jsonl").open("a").write("{")
    words = [word for word in words if word != "--do_train"]
    model = ["--model_name_or_path", tmp_path / "out"]
    ended = launch.run("glue_trans.py", *words, *model)
    assert (ended.code, ended.out.splitlines()[-1].split()[1:]) == (
        0,
        wanted.splitlines()[-1].split()[1:],
    )
    assert len(re.findall(rf"^{launch.TIME} WARNING .*left out$", ended.err, re.M)) == count


def test_debug_shows_the_messages_of_the_libraries(data, tmp_path):
    from utils.modeling import bert

    levels = []
    for level in "debug", "info":
        bert.set_library_defaults.cache_clear()
        flags = ["--method", "random", "--rate", 0.5, "--weight", "pre", "--model", "glue"]
        flags += ["--model_name_or_path", data / "bert", "--output_dir", tmp_path / level]
        assert launch.run("oneshot.py", *flags, "--log_level", level).code == 0
        levels.append(transformers.logging.get_verbosity())
    assert levels == [logging.DEBUG, logging.ERROR]


def test_another_level_is_refused(data, tmp_path):
    flags = ["--model_name_or_path", data / "bert", "--log_level", "loud"]
    ended = launch.run("pertub_weight.py", *flags)
    assert_refused(ended, "pertub_weight.py", "--log_level", "loud", "warning")


def test_a_flag_and_its_other_name_are_refused(data, tmp_path):
    flags = ["--dir", "pre", "--per_device_train_batch_size=8"]
    ended = launch.run("glue_trans.py", *evaluation(data, tmp_path / "out", *flags))
    names = "--per_gpu_train_batch_size and --per_device_train_batch_size"
    assert_refused(ended, "glue_trans.py", names, "give one")
