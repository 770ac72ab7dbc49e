"""squad_trans.py: IMP without --dir, one network with it; the files it writes."""

import json

import launch
import pytest
import tiny
import torch
from launch import done, results, run
from safetensors.torch import load_file

from utils.config import SquadConfig
from utils.data.squad import read_squad
from utils.pruning import masks
from utils.tasks.squad import SquadTask
from utils.tasks.squad_answers import squad_metrics


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squad")
    tiny.bert(folder / "bert", dropout=0.0)
    tiny.squad(folder / "v1")
    tiny.squad(folder / "v2", impossible=True)
    return folder


def command(data, out, *more, version="v1"):
    return [
        *("--output_dir", out, "--model_name_or_path", data / "bert"),
        *("--train_file", data / version / "train-v1.1.json"),
        *("--predict_file", data / version / "dev-v1.1.json", "--do_train", "--do_eval"),
        *("--do_lower_case", "--no_cuda", "--max_seq_length", 48, "--doc_stride", 16),
        *("--max_query_length", 12, "--per_gpu_train_batch_size", 6, "--learning_rate", 1e-3),
        *more,
    ]


def mask_at(folder, step):
    return torch.load(folder / f"checkpoint-{step}" / "mask.pt", weights_only=True)


def dropped(mask):
    return sum(int((~m).sum()) for m in mask.values())


def read(path):
    return json.loads(path.read_text())


# ---- finding tickets


def test_without_dir_it_finds_tickets(data, tmp_path, steps):
    ended = run(
        "squad_trans.py",
        *command(
            data, tmp_path / "out", "--max_steps", 12, "--save_steps", 4, "--sparsities", 0.3, 0.6
        ),
    )
    assert ended.notes()[0].startswith("squad_trans.py finds tickets (IMP)")
    assert len(steps) == 12
    for later in (steps[4], steps[8]):  # theta_0 and the first QA head
        assert all(
            torch.equal(later["weights"][name], value)
            for name, value in steps[0]["weights"].items()
        )
        assert [step["rate"] for step in steps[:4]] == [step["rate"] for step in steps[4:8]]
    for step, sparsity, start in ((4, 0.3, steps[4]), (8, 0.6, steps[8])):
        mask = mask_at(tmp_path / "out", step)
        assert len(mask) == 13 and dropped(mask) == round(
            sparsity * sum(m.numel() for m in mask.values())
        )
        assert all(torch.equal(start["mask"][key], kept) for key, kept in mask.items())
    assert [
        (row["task"], row["method"], round(row["sparsity"], 3)) for row in results(tmp_path / "out")
    ] == [("squad", "imp", 0.0), ("squad", "imp", 0.3), ("squad", "imp", 0.6)]
    assert {path.name for path in (tmp_path / "out").glob("*predictions_*.json")} == {
        f"{kind}predictions_{step}.json" for kind in ("", "nbest_") for step in (4, 8, 12)
    }


def test_the_pooler_is_pruned_and_keeps_its_pre_trained_weights(data, tmp_path):
    done(
        "squad_trans.py",
        *command(data, tmp_path / "out", "--max_steps", 4, "--save_steps", 2, "--sparsities", 0.5),
    )
    before = load_file(data / "bert" / "model.safetensors")["bert.pooler.dense.weight"]
    key = "bert.pooler.dense.weight_mask"
    mask = mask_at(tmp_path / "out", 2)
    assert 0 < (~mask[key]).sum() < mask[key].numel()
    assert torch.equal(
        load_file(tmp_path / "out" / "checkpoint-4" / "model.safetensors")[
            "bert.pooler.dense.weight"
        ],
        before * mask[key],
    )


def test_as_released_the_first_round_is_a_step_shorter_and_the_head_is_kept(data, tmp_path, steps):
    done(
        "squad_trans.py",
        *command(data, tmp_path / "out", "--max_steps", 8, "--save_steps", 4, "--as_released"),
    )
    assert [step["fresh"] for step in steps] == [True, False, False, True, False, False, False]
    first, second = steps[0], steps[3]
    for name, value in first["weights"].items():
        assert torch.equal(second["weights"][name], value) == name.startswith("bert."), name
    # linear over the 4 epochs of 4 steps, from its top again in the second round
    total = 16
    expected = [1e-3 * (total - step) / total for step in (0, 1, 2, 0, 1, 2, 3)]
    assert [step["rate"] for step in steps] == pytest.approx(expected)


EARLY = ["--evaluate_during_training", "--logging_steps", 3]


@pytest.mark.parametrize("released", [False, True])
def test_as_released_evaluations_come_one_step_early(data, tmp_path, steps, monkeypatch, released):
    evaluated, evaluate = [], SquadTask.evaluate

    def recorded(self, *args):
        evaluated.append(len(steps))
        return evaluate(self, *args)

    monkeypatch.setattr(SquadTask, "evaluate", recorded)
    flags = ["--max_steps", 7, *EARLY, *(["--as_released"] if released else [])]
    done("squad_trans.py", *command(data, tmp_path / "one", "--dir", "pre", *flags))
    expected = [2, 5, 7] if released else [3, 6, 7]
    assert evaluated == expected
    assert [row["step"] for row in results(tmp_path / "one")] == expected
    steps.clear()
    evaluated.clear()
    flags = [*flags, "--max_steps", 8, "--save_steps", 4]
    done("squad_trans.py", *command(data, tmp_path / "imp", *flags))
    assert evaluated == ([2, 3, 5, 7] if released else [3, 4, 6, 8])
    finals = [(row["step"], row["final"]) for row in results(tmp_path / "imp")]
    assert finals == [(3, False), (4, True), (6, False), (8, True)]


def test_as_released_answers_with_other_spaces_do_not_train(data, tmp_path):
    context = "the price is 10\u00a0000 now"
    answers = [("10\u00a0000", 13), ("now", 20)]
    qas = [
        {"id": text, "question": "what", "answers": [{"text": text, "answer_start": at}]}
        for text, at in answers
    ]
    document = {"data": [{"title": "", "paragraphs": [{"context": context, "qas": qas}]}]}
    path = tmp_path / "train.json"
    path.write_text(json.dumps(document))
    flags = ["--dir", "pre", "--max_steps", 1, "--train_file", path, "--cache_dir", tmp_path]
    paper = launch.run("squad_trans.py", *command(data, tmp_path / "paper", *flags))
    assert paper.code == 0 and "left out of training" not in paper.err
    flags.append("--as_released")
    ended = launch.run("squad_trans.py", *command(data, tmp_path / "released", *flags))
    assert ended.code == 0 and "1 of 2 questions left out of training" in ended.err
    assert "or has spaces" in ended.err


# ---- training one network


def test_a_ticket_trains_and_writes_its_answers_under_the_released_names(data, tmp_path, steps):
    done(
        "oneshot.py",
        *("--weight", "pre", "--model", "squad", "--rate", 0.4),
        *("--model_name_or_path", data / "bert", "--output_dir", tmp_path / "omp"),
    )
    mask = torch.load(tmp_path / "omp" / "mask.pt", weights_only=True)
    ended = run(
        "squad_trans.py",
        *command(
            data,
            tmp_path / "out",
            *("--dir", "pre", "--mask_dir", tmp_path / "omp" / "mask.pt", "--max_steps", 4),
        ),
    )
    assert ended.notes()[0].startswith("squad_trans.py trains one network")
    assert (
        all(torch.equal(step["mask"][key], kept) for key, kept in mask.items() for step in steps)
        and len(steps) == 4
    )
    answers, lists = (
        read(tmp_path / "out" / f"{kind}predictions_.json") for kind in ("", "nbest_")
    )
    questions = [
        q["id"]
        for a in read(data / "v1" / "dev-v1.1.json")["data"]
        for p in a["paragraphs"]
        for q in p["qas"]
    ]
    assert list(answers) == list(lists) == questions
    assert all(
        found[0]["text"] == answers[name]
        and sum(each["probability"] for each in found) == pytest.approx(1)
        for name, found in lists.items()
    )
    (row,) = results(tmp_path / "out")
    examples = read_squad(data / "v1" / "dev-v1.1.json", v2=False)
    assert row["metrics"] == pytest.approx(squad_metrics(examples, answers, SquadConfig()))
    assert row["score"] == row["metrics"]["f1"] and row["mask_sha256"] == masks.digest(mask)
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert all((state[key.removesuffix("_mask")][~kept] == 0).all() for key, kept in mask.items())


def test_answers_during_training_have_the_step_in_their_name(data, tmp_path):
    done(
        "squad_trans.py",
        *command(
            data,
            tmp_path / "out",
            *("--dir", "pre", "--max_steps", 4, "--evaluate_during_training"),
            *("--logging_steps", 2),
        ),
    )
    assert {path.name for path in (tmp_path / "out").glob("predictions_*.json")} == {
        "predictions_2.json",
        "predictions_.json",
    }


def test_a_saved_model_evaluates_to_its_recorded_scores(data, tmp_path):
    done("squad_trans.py", *command(data, tmp_path / "out", "--dir", "pre", "--max_steps", 6))
    flags = [flag for flag in command(data, tmp_path / "again") if flag != "--do_train"]
    flags[flags.index("--model_name_or_path") + 1] = tmp_path / "out"
    done("squad_trans.py", *flags, "--dir", "pre")
    assert results(tmp_path / "again")[0]["metrics"] == results(tmp_path / "out")[0]["metrics"]
    assert read(tmp_path / "again" / "predictions_.json") == read(
        tmp_path / "out" / "predictions_.json"
    )


def test_questions_without_answer(data, tmp_path):
    done(
        "squad_trans.py",
        *command(
            data,
            tmp_path / "out",
            *("--dir", "pre", "--max_steps", 4, "--version_2_with_negative"),
            *("--null_score_diff_threshold", -1e6),
            version="v2",
        ),
    )
    assert set(read(tmp_path / "out" / "predictions_.json").values()) == {
        ""
    }  # the odds of every question exceed it
    assert len(read(tmp_path / "out" / "null_odds_.json")) == 8
    metrics = results(tmp_path / "out")[0]["metrics"]
    assert (metrics["NoAns_f1"], metrics["HasAns_f1"], metrics["f1"]) == (100, 0, 50)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--n_best_size", 0), "--n_best_size 0 must"),
        (("--max_answer_length", 0), "--max_answer_length 0 must"),
        (("--threads", 0), "--threads 0 must"),
        (("--no_rewind",), "leave out --dir"),
    ],
)
def test_impossible_flags_are_refused(data, tmp_path, flags, said):
    ended = launch.run(
        "squad_trans.py", *command(data, tmp_path / "out", "--dir", "pre", "--max_steps", 2, *flags)
    )
    (line,) = ended.errors()
    assert ended.code == 2 and said in line and not (tmp_path / "out").exists()


def test_a_v2_file_without_the_flag_is_refused(data, tmp_path):
    ended = launch.run(
        "squad_trans.py",
        *command(data, tmp_path / "out", "--dir", "pre", "--max_steps", 2, version="v2"),
    )
    (line,) = ended.errors()
    assert (
        ended.code == 2 and "--version_2_with_negative" in line and not (tmp_path / "out").exists()
    )
