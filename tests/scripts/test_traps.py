"""Traps of the released code at the command line: model paths and tokenizers as users have them."""

import glue_runs
import pytest
import tiny
from glue_runs import command
from launch import done, results

from utils.data import glue
from utils.modeling import bert


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return glue_runs.make_data(tmp_path_factory)


def test_a_model_path_that_ends_in_a_number_is_a_model_and_not_a_step(data, tmp_path):
    model = tiny.bert(tmp_path / "checkpoint-7")
    out = tmp_path / "out-3"
    flags = ["--dir", "pre", "--model_name_or_path", model, "--max_steps", 2]
    done("glue_trans.py", *command(data, out, *flags))
    assert [row["step"] for row in results(out)] == [2]


def test_rows_of_a_tokenizer_without_a_length_limit_are_cut_by_the_flag(tmp_path):
    tokenizer = bert.load_tokenizer(str(tiny.bert(tmp_path / "bert")), True)
    assert tokenizer.model_max_length > 10**9
    folder = tiny.glue(tmp_path / "SST-2", "SST-2")
    train = glue.load(glue.find_spec("SST-2"), folder, "train", tokenizer, 6)
    assert train.rows.lengths().max() == 6
