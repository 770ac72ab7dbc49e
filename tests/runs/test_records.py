"""The rows of results.jsonl: what is written is read back, and invalid rows are reported."""

import json

import pytest
from glue_runs import ROW

from utils.pruning.origin import Origin
from utils.runs.records import EvaluationRecord, append_record, read_records

RECORD = EvaluationRecord(
    task="rte",
    method="train",
    init="layers",
    init_info=Origin(mode="layers", seed=3),
    seed=1,
    sparsity=0.5,
    score=None,
    mask="out/checkpoint-20/mask.pt",
    mask_sha256="00ff",
    mask_info=Origin(method="imp", task="mnli", sparsity=0.5, mask_sha256="00ff"),
    step=7,
    metrics={"acc": None},
    args={"dir": "pre", "seed": 1},
)


def test_a_record_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "results.jsonl"
    append_record(path, RECORD)
    append_record(path, RECORD)
    assert read_records(path) == ([(1, RECORD), (2, RECORD)], [])
    row = json.loads(path.read_text().splitlines()[0])
    assert set(row) == ROW and row["mask_info"]["task"] == "mnli" and row["score"] is None


def test_without_a_file_there_are_no_records(tmp_path):
    assert read_records(tmp_path / "results.jsonl") == ([], [])


def test_rows_of_earlier_versions_load(tmp_path):
    row = RECORD.to_json()
    row["args"] = {"init": "pre", "seed": 1}  # --dir was recorded as "init"
    row["retired"] = 0
    del row["wall_seconds"], row["final"]
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
    assert read_records(tmp_path / "results.jsonl") == ([(1, RECORD)], [])


def test_a_half_written_row_is_reported_and_the_next_row_starts_a_new_line(tmp_path):
    path = tmp_path / "results.jsonl"
    append_record(path, RECORD)
    path.write_bytes(path.read_bytes() + b'{"task": "r')
    assert read_records(path) == (
        [(1, RECORD)],
        [f"{path}, line 2: half-written last line; left out"],
    )
    append_record(path, RECORD)
    assert read_records(path) == (
        [(1, RECORD), (3, RECORD)],
        [f"{path}, line 2: not JSON; left out"],
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"seed": None}, "'seed' is None, not an integer"),
        ({"sparsity": "0.5"}, "'sparsity' is '0.5', not a number"),
        ({"score": True}, "'score' is True, not a number or null"),
        ({"score": float("nan")}, "'score' is nan, not a number or null"),
        ({"step": "7"}, "'step' is '7', not an integer"),
        ({"mask_info": "imp"}, "'mask_info' is 'imp', not an object or null"),
        ({"mask_info": {"task": [1]}}, "'mask_info.task' is [1], not a string or null"),
        ({"metrics": {"acc": {}}}, "'metrics.acc' is {}, not a number or null"),
        ({"args": [1]}, "'args' is [1], not an object"),
    ],
)
def test_a_row_with_a_wrong_value_is_left_out_and_named(tmp_path, change, why):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(RECORD.to_json() | change) + "\n[]\n")
    records, problems = read_records(path)
    assert records == []
    assert problems == [
        f"{path}, line 1: {why}; left out",
        f"{path}, line 2: not an object; left out",
    ]


def test_a_row_without_a_required_key_is_left_out_and_named(tmp_path):
    path = tmp_path / "results.jsonl"
    row = RECORD.to_json()
    del row["task"]
    path.write_text(json.dumps(row) + "\n")
    assert read_records(path) == ([], [f"{path}, line 1: no 'task'; left out"])


def test_the_keys_of_a_row_keep_their_order():
    record = EvaluationRecord(
        task="rte", method="train", init="pre", seed=1, sparsity=0.0, score=50.0
    )
    keys = "task script method init init_info seed args versions device sparsity mask mask_sha256 "
    keys += "mask_info step round final metrics score wall_seconds"
    assert list(record.to_json()) == keys.split()
