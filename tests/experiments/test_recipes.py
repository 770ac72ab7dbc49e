"""Scores of different recipes are neither averaged nor compared."""

import shutil
from pathlib import Path

import pytest
from built_tables import ROOT, built, layout, run
from results_tree import mask_info, row, save_mask, small_mask, write_rows

from experiments import results, tables
from utils.errors import UserError

RECIPE = {
    "model_name_or_path": "bert",
    "learning_rate": 2e-5,
    "per_gpu_train_batch_size": 16,
    "max_seq_length": 128,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3.0,
    "max_steps": -1,
    "fp16": False,
    "bf16": False,
}
ROUNDS = RECIPE | {"max_steps": 1800, "save_steps": 180, "num_train_epochs": 30.0}


def write_two(folder: Path, first: dict, second: dict) -> results.Results:
    """Write two rows to the folders a and b; return the results read from both."""
    write_rows(folder / "a" / "seed1", [first])
    write_rows(folder / "b" / "seed1", [second])
    return results.read(folder)


@pytest.mark.parametrize("seed", [1, 2], ids=["same seed", "another seed"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name_or_path": "other"}, "--model_name_or_path is bert in {a} and other in {b}"),
        ({"learning_rate": 1e-4}, "--learning_rate is 2e-05 in {a} and 0.0001 in {b}"),
        ({"max_train_samples": 8}, "--max_train_samples is None in {a} and 8 in {b}"),
        ({"max_eval_samples": 8}, "--max_eval_samples is None in {a} and 8 in {b}"),
        ({"per_gpu_train_batch_size": 8}, "is 16 in {a} and 8 in {b}"),
        ({"gradient_accumulation_steps": 2}, "is 16 in {a} and 32 in {b}"),
        ({"processes": 2}, "is 16 in {a} and 32 in {b}"),
        (
            {"num_train_epochs": 2.0},
            "(--max_steps, --num_train_epochs) is 3 epochs in {a} and 2 epochs in {b}",
        ),
        (
            {"max_steps": 90},
            "(--max_steps, --num_train_epochs) is 3 epochs in {a} and 90 steps in {b}",
        ),
        ({"max_seq_length": 64}, "--max_seq_length is 128 in {a} and 64 in {b}"),
        ({"bf16": True}, "(--fp16, --bf16, --tf32) is fp32 in {a} and bf16 in {b}"),
        (
            {"learning_rate": 1e-4, "model_name_or_path": "z"},
            "--model_name_or_path is bert in {a} and z in {b}",
        ),
    ],
)
def test_two_recipes_are_refused(tmp_path, changes, message, seed):
    found = write_two(
        tmp_path, row("rte", 80.0, 1, args=RECIPE), row("rte", 20.0, seed, args=RECIPE | changes)
    )
    with pytest.raises(UserError) as error:
        found.full("rte")
    expected = message.format(a=tmp_path / "a" / "seed1", b=tmp_path / "b" / "seed1")
    assert (
        str(error.value).startswith("RTE: ")
        and expected in str(error.value)
        and "runs/NAME" in str(error.value)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {
            "seed": 2,
            "output_dir": "o",
            "mask_dir": "m",
            "cache_dir": "c",
            "threads": 2,
            "logging_steps": 0,
            "save_steps": 0,
            "save_total_limit": 0,
            "data_dir": "d",
            "overwrite_cache": True,
            "init": "rand",
            "weight_pertub": "w",
        },
        {"model_name_or_path": "./bert/"},
        {"tf32": False, "compile": True, "fp16": None, "num_train_epochs": 3},
        {"per_gpu_train_batch_size": 4, "gradient_accumulation_steps": 2, "processes": 2},
    ],
)
def test_rows_of_one_recipe_are_averaged_whatever_else_differs(tmp_path, changes):
    found = write_two(
        tmp_path, row("rte", 80.0, 1, args=RECIPE), row("rte", 60.0, 2, args=RECIPE | changes)
    )
    assert found.full("rte").mean == 70.0


def test_noise_of_two_standard_deviations_is_refused(tmp_path):
    noisy = [
        row("rte", score, seed, mask_info("rte", 0.6, 1), init="noise", init_info=info)
        for seed, score, info in ((1, 70.0, {"sigma": 0.02}), (2, 10.0, {"sigma": 0.5}))
    ]
    found = write_two(tmp_path, *noisy)
    with pytest.raises(UserError, match=r"RTE: --sigma of the noise is 0.02 in .* and 0.5 in"):
        found.cell("rte", "IMP, noise added", 60.0)


def test_rows_without_arguments_agree_with_every_recipe(tmp_path):
    found = write_two(
        tmp_path, row("rte", 80.0, 1, args=RECIPE | {"bf16": True}), row("rte", 60.0, 2, args=None)
    )
    assert found.full("rte").mean == 70.0
    found = write_two(tmp_path, row("rte", 80.0, 1, args=RECIPE), row("rte", 60.0, 1, args=None))
    assert found.full("rte") is None and "contradiction" in found.notices[0]


def test_a_ticket_is_not_compared_with_the_full_network_of_another_recipe(tmp_path):
    ticket = row("rte", 80.0, 1, mask_info("rte", 0.6, 1), args=RECIPE | {"learning_rate": 1e-4})
    found = write_two(tmp_path, row("rte", 80.0, 1, args=RECIPE), ticket)
    assert found.full("rte").mean == 80.0
    with pytest.raises(UserError, match="RTE: --learning_rate"):
        found.cell("rte", "IMP", 60)


def test_recipes_may_differ_between_tasks_and_in_rows_of_no_table(tmp_path):
    other = RECIPE | {"learning_rate": 1e-4}
    found = write_two(tmp_path, row("rte", 80.0, 1, args=RECIPE), row("cola", 20.0, 1, args=other))
    assert (found.full("rte").mean, found.full("cola").mean) == (80.0, 20.0)
    write_two(
        tmp_path, row("rte", 80.0, 1, args=RECIPE), row("rte", 20.0, 2, init="rand", args=other)
    )  # dense theta_0'
    assert tables.build(tmp_path, layout("rte"), None, False)[1].notices == []


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({}, None),  # epochs: the row does not say how many steps
        ({"max_steps": 180}, None),
        ({"max_steps": 720}, "is 720 steps in .*/a/seed1 and 180 steps in .*/b/seed1"),
        (
            {"learning_rate": 1e-4},
            "--learning_rate is 0.0001 in .*/a/seed1 and 2e-05 in .*/b/seed1",
        ),
    ],
)
def test_rounds_of_imp_beside_trainings(tmp_path, training, message):
    ticket = row(
        "rte", 60.0, 1, mask_info("rte", 0.6, 1), method="imp", args=ROUNDS, step=1260, round=7
    )
    found = write_two(tmp_path, row("rte", 80.0, 1, args=RECIPE | training), ticket)
    assert found.full("rte").mean == 80.0
    if message is None:
        assert found.cell("rte", "IMP", 60).mean == 60.0
    else:
        with pytest.raises(UserError, match=message):
            found.cell("rte", "IMP", 60)


def test_rounds_of_two_lengths_are_refused_but_not_two_numbers_of_rounds(tmp_path):
    def ticket(seed: int, steps: int, rounds: int) -> dict:
        arguments = RECIPE | {"max_steps": rounds * steps, "save_steps": steps}
        return row(
            "rte",
            60.0,
            seed,
            mask_info("rte", 0.6, seed),
            "imp",
            args=arguments,
            step=7 * steps,
            round=7,
        )

    assert write_two(tmp_path, ticket(1, 180, 10), ticket(2, 180, 7)).cell("rte", "IMP", 60).n == 2
    with pytest.raises(
        UserError, match=r"--save_steps of IMP.* is 180 steps in .* and 90 steps in"
    ):
        write_two(tmp_path, ticket(1, 180, 10), ticket(2, 90, 20)).cell("rte", "IMP", 60)


def test_overlap_of_masks_found_by_two_recipes_is_refused(tmp_path):
    for folder, seed, rate in (("a", 1, 2e-5), ("b", 2, 1e-4)):
        info, arguments = mask_info("rte", 0.7, seed), ROUNDS | {"learning_rate": rate}
        save_mask(tmp_path / folder / "checkpoint-1260", small_mask(0.7, seed), info)
        write_rows(
            tmp_path / folder,
            [row("rte", 50.0, seed, info, "imp", args=arguments, step=1440, round=8)],
        )
    with pytest.raises(UserError, match="RTE: --learning_rate is 2e-05"):
        tables.build(tmp_path, layout("rte"), ["figure_overlap"], False)
    assert built(tmp_path, "cola", only=["figure_overlap"]) == ([], [])
    for mask in tmp_path.rglob("mask.pt"):
        mask.unlink()
    assert built(tmp_path, "rte", only=["figure_overlap"]) == ([], [])


def test_the_command_refuses_two_precisions_in_one_line(tmp_path):
    for name in ("float32", "bfloat16"):
        shutil.copytree(ROOT / "docs" / "results" / "quickstart", tmp_path / name)
    path = tmp_path / "bfloat16" / "results.jsonl"
    path.write_text(path.read_text().replace('"bf16": false', '"bf16": true'))
    done = run(str(tmp_path), "--tasks", "mlm")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert f"is bf16 in {path.parent} and fp32 in {tmp_path / 'float32'}" in done.stderr
