"""MLM through its scripts: what a round trains and prunes, its models and its tickets."""

import itertools
import json

import launch
import pytest
import tiny
import torch
from launch import done, results
from safetensors.torch import load_file
from transformers import BertForMaskedLM, BertForPreTraining

from utils.pruning import criteria

BLOCK = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlm")
    tiny.bert(folder / "bert", dropout=0.0)
    tiny.text(folder / "text")
    tiny.glue(folder / "MRPC", "MRPC", train=24, dev=10)
    tiny.squad(folder / "squad", train=4, dev=2)
    return folder


def command(data, out, *more):
    return [
        *("--output_dir", out, "--mlm", "--train_data_file", data / "text" / "en.train"),
        *("--do_train", "--do_eval", "--eval_data_file", data / "text" / "en.valid"),
        *("--block_size", BLOCK, "--per_gpu_train_batch_size", 8, "--learning_rate", 1e-3),
        "--no_cuda",
        *more,
    ]


def bert(data):
    return ["--model_name_or_path", data / "bert"]


def mask_at(folder, step):
    return torch.load(folder / f"checkpoint-{step}" / "mask.pt", weights_only=True)


@pytest.fixture(scope="module")
def rounds(data):
    """LT_pretrain.py with three rounds of four steps."""
    done(
        "LT_pretrain.py",
        *command(
            data,
            data / "rounds",
            *bert(data),
            *("--max_steps", 12, "--save_steps", 4, "--sparsities", 0.3, 0.6),
        ),
    )
    return data / "rounds"


# ---- rounds


def test_each_round_trains_the_previous_mask_from_theta_0_with_its_head(data, tmp_path, steps):
    done(
        "LT_pretrain.py",
        *command(
            data,
            tmp_path / "out",
            *bert(data),
            *("--max_steps", 9, "--save_steps", 3, "--sparsities", 0.3, 0.6),
        ),
    )
    first, second, third = (steps[at] for at in (0, 3, 6))
    for start in (second, third):
        assert all(
            torch.equal(start["weights"][name], value) for name, value in first["weights"].items()
        )
        assert any(name.startswith("cls.") for name in start["weights"]) and start["fresh"]
    assert not any((~m).any() for m in first["mask"].values())
    for start, step in ((second, 3), (third, 6)):
        assert all(
            torch.equal(start["mask"][key], kept)
            for key, kept in mask_at(tmp_path / "out", step).items()
        )
    assert [step["rate"] for step in steps[:3]] == [step["rate"] for step in steps[3:6]]


def test_masks_include_the_pooler_and_its_weights_stay_pre_trained(data, rounds):
    """No gradient reaches it, but it is ranked."""
    before = load_file(data / "bert" / "model.safetensors")["bert.pooler.dense.weight"]
    key = "bert.pooler.dense.weight_mask"
    for step, sparsity in ((4, 0.3), (8, 0.6)):
        mask = mask_at(rounds, step)
        assert len(mask) == 13 and key in mask
        assert sum(int((~m).sum()) for m in mask.values()) == round(
            sparsity * sum(m.numel() for m in mask.values())
        )
        after = load_file(rounds / f"checkpoint-{step + 4}" / "model.safetensors")[
            "bert.pooler.dense.weight"
        ]
        assert torch.equal(after, before * mask[key])


def test_as_released_prunes_before_training_and_never_rewinds(data, tmp_path, steps):
    done(
        "LT_pretrain.py",
        *command(
            data,
            tmp_path / "out",
            *bert(data),
            *("--max_steps", 12, "--save_steps", 4, "--as_released"),
        ),
    )
    total = sum(m.numel() for m in steps[0]["mask"].values())
    for at, sparsity in ((0, 0.1), (4, 0.2)):
        assert sum(int((~m).sum()) for m in steps[at]["mask"].values()) == round(sparsity * total)
    expected = criteria.magnitude(
        {
            key: steps[0]["weights"][f"{key}.weight"]
            for key in (name.removesuffix(".weight_mask") for name in steps[0]["mask"])
        },
        0.1,
    )
    assert all(torch.equal(steps[0]["mask"][key], kept) for key, kept in expected.items())
    assert not any(
        torch.equal(steps[4]["weights"][name], value)
        for name, value in steps[3]["weights"].items()
        if f"{name}_mask" in steps[0]["mask"] and "pooler" not in name
    )  # step 5 continues from step 4 ...
    start, end = (
        step["weights"]["bert.encoder.layer.0.output.dense.weight"] for step in (steps[0], steps[4])
    )
    assert (start - end).abs().max() > 1e-3  # ... and not from theta_0


def test_as_released_takes_a_rewinding_step_though_it_never_rewinds(data, tmp_path):
    flags = ["--max_steps", 6, "--save_steps", 3, "--rewind_steps", 1, "--as_released"]
    done("LT_pretrain.py", *command(data, tmp_path / "out", *bert(data), *flags))
    origin = json.loads((tmp_path / "out" / "checkpoint-3" / "mask.pt.json").read_text())
    assert (origin["rewind"], origin["rewind_steps"]) == ("none", 1)


@pytest.mark.parametrize("released", [False, True])
def test_the_order_of_the_data_restarts_or_continues(data, tmp_path, steps, released):
    flags = ["--as_released"] if released else []
    done(
        "LT_pretrain.py",
        *command(
            data,
            tmp_path / "out",
            *bert(data),
            *("--max_steps", 8, "--save_steps", 4, "--sparsities", 0.3, 0.6, 0.9, "--seed", 3),
            *flags,
        ),
    )
    rows = [step["rows"] for step in steps]
    blocks = max(itertools.chain.from_iterable(rows)) + 1
    assert len(rows) == 8 and blocks > 32
    if released:  # no row twice before the epoch is over
        seen = list(itertools.chain.from_iterable(rows))[: 8 * (blocks // 8)]
        assert len(set(seen)) == len(seen)
    else:
        assert rows[0] != rows[4]  # a round has its own order


def test_a_run_may_be_longer_than_an_epoch_and_has_exactly_its_steps(data, tmp_path, steps):
    done(
        "pretrain_trans.py",
        *command(data, tmp_path / "out", *bert(data), "--dir", "pre", "--max_steps", 31),
    )
    rows = [step["rows"] for step in steps]
    epoch = next(number for number, batch in enumerate(rows) if len(batch) < 8) + 1
    assert len(rows) == 31 and epoch < 31
    for start in range(0, 31 - epoch, epoch):
        seen = list(itertools.chain.from_iterable(rows[start : start + epoch]))
        assert sorted(seen) == list(range(len(seen)))


# ---- models


def tied(folder):
    """Return whether embeddings and decoder of the saved model are one matrix, and the model."""
    model, info = BertForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not info["unexpected_keys"] - {
        name for name in info["unexpected_keys"] if "pooler" in name
    }
    return (
        model.cls.predictions.decoder.weight.data_ptr()
        == model.bert.embeddings.word_embeddings.weight.data_ptr(),
        model,
    )


def test_decoder_and_embeddings_stay_one_matrix(rounds, data, tmp_path, steps):
    for step in (4, 8, 12):
        one, model = tied(rounds / f"checkpoint-{step}")
        assert one
        before = load_file(data / "bert" / "model.safetensors")[
            "bert.embeddings.word_embeddings.weight"
        ]
        assert not torch.equal(model.bert.embeddings.word_embeddings.weight, before)  # trained
    done(
        "pretrain_trans.py",
        *command(
            data,
            tmp_path / "out",
            *("--model_name_or_path", rounds / "checkpoint-12", "--dir", "pre", "--max_steps", 2),
        ),
    )
    for step in steps:  # one name for it among all parameters
        assert not any("decoder.weight" in name for name in step["weights"])


def test_a_bert_trained_from_scratch_is_a_model_for_every_script(data, tmp_path):
    scratch = tmp_path / "scratch"
    done(
        "pretrain_trans.py",
        *command(
            data,
            scratch,
            *("--dir", "rand", "--config_name", data / "bert", "--tokenizer_name", data / "bert"),
            *("--max_steps", 40, "--learning_rate", 3e-3, "--evaluate_during_training"),
            *("--logging_steps", 10),
        ),
    )
    perplexities = [row["metrics"]["perplexity"] for row in results(scratch)]
    assert perplexities[-1] < 0.7 * len(tiny.VOCABULARY) and perplexities == sorted(
        perplexities, reverse=True
    )
    info = BertForPreTraining.from_pretrained(scratch, output_loading_info=True)[1]
    assert all(
        "seq_relationship" in name for name in info["missing_keys"]
    )  # only next-sentence prediction is missing
    done(
        "LT_pretrain.py",
        *command(
            data,
            tmp_path / "random",
            *("--config_name", data / "bert", "--tokenizer_name", data / "bert"),
            *("--max_steps", 2, "--save_steps", 1, "--sparsities", 0.5),
        ),
    )
    assert {row["init"] for row in results(tmp_path / "random")} == {"rand"}
    theta_0 = load_file(scratch / "model.safetensors")
    done(
        "LT_pretrain.py",
        *command(
            data,
            tmp_path / "imp",
            *("--model_name_or_path", scratch, "--max_steps", 4, "--save_steps", 2),
            *("--sparsities", 0.5),
        ),
    )
    done("glue_trans.py", *glue(data, tmp_path / "glue", "--model_name_or_path", scratch))
    done(
        "oneshot.py",
        *("--weight", "pre", "--model", "pretrain", "--rate", 0.5),
        *("--model_name_or_path", scratch, "--output_dir", tmp_path / "omp"),
    )
    mask = torch.load(tmp_path / "omp" / "mask.pt", weights_only=True)
    values = {key: theta_0[key.removesuffix("_mask")] for key in mask}
    kept, dropped = (
        torch.cat([v[mask[k] if keep else ~mask[k]].abs() for k, v in values.items()])
        for keep in (True, False)
    )
    assert kept.min() >= dropped.max()


def test_as_released_needs_two_sparsities(data, tmp_path):
    ended = launch.run(
        "LT_pretrain.py",
        *command(
            data,
            tmp_path / "out",
            *bert(data),
            *("--max_steps", 8, "--save_steps", 4, "--sparsities", 0.3, "--as_released"),
        ),
    )
    (line,) = ended.errors()
    assert ended.code == 2 and "--sparsities" in line and "at least two" in line


def test_a_vocabulary_larger_than_the_embeddings_is_refused(data, tmp_path):
    small = tiny.bert(tmp_path / "small", vocab_size=len(tiny.VOCABULARY) - 1)
    ended = launch.run(
        "LT_pretrain.py",
        *command(data, tmp_path / "out", "--model_name_or_path", small, "--max_steps", 2),
    )
    (line,) = ended.errors()
    assert ended.code == 2 and "vocabulary" in line and not (tmp_path / "out").exists()


# ---- tickets go from task to task


def glue(data, out, *more):
    return [
        *("--dir", "pre", "--output_dir", out, "--task_name", "MRPC"),
        *("--data_dir", data / "MRPC", "--do_train", "--do_eval", "--do_lower_case"),
        *("--max_seq_length", 32, "--per_gpu_train_batch_size", 8, "--max_steps", 2, "--no_cuda"),
        *more,
    ]


def squad(data, out, *more):
    return [
        *("--output_dir", out, "--train_file", data / "squad" / "train-v1.1.json"),
        *("--predict_file", data / "squad" / "dev-v1.1.json", "--do_train", "--do_eval"),
        *("--do_lower_case", "--max_seq_length", 48, "--doc_stride", 16),
        *("--max_query_length", 12, "--per_gpu_train_batch_size", 8, "--no_cuda"),
        *more,
    ]


def trained_under(step, mask):
    return all(torch.equal(step["mask"][key], kept) for key, kept in mask.items())


def test_an_mlm_ticket_trains_on_glue_and_squad(data, rounds, tmp_path, steps):
    path = rounds / "checkpoint-8" / "mask.pt"
    ticket = [*bert(data), "--mask_dir", path]
    done("glue_trans.py", *glue(data, tmp_path / "glue", *ticket))
    assert trained_under(steps[-1], mask_at(rounds, 8))
    done(
        "squad_trans.py",
        *squad(data, tmp_path / "squad", "--dir", "pre", "--max_steps", 2, *ticket),
    )
    assert trained_under(steps[-1], mask_at(rounds, 8))
    entry = json.loads((rounds / "tickets.json").read_text())["tickets"][1]
    for task in ("glue", "squad"):
        (row,) = results(tmp_path / task)
        assert row["mask_sha256"] == entry["mask_sha256"] and row["mask_info"]["task"] == "mlm"


def test_tickets_of_glue_and_squad_train_on_mlm(data, tmp_path, steps):
    given = ["--max_steps", 4, "--save_steps", 2, "--sparsities", 0.5, *bert(data)]
    done("LT_glue.py", *glue(data, tmp_path / "glue", *given)[2:])
    done("squad_trans.py", *squad(data, tmp_path / "squad", *given))
    for source in ("glue", "squad"):
        path = tmp_path / source / "checkpoint-2" / "mask.pt"
        done(
            "pretrain_trans.py",
            *command(
                data,
                tmp_path / f"{source}-mlm",
                *bert(data),
                *("--dir", "pre", "--mask_dir", path, "--max_steps", 2),
            ),
        )
        assert trained_under(steps[-1], torch.load(path, weights_only=True))
        (row,) = results(tmp_path / f"{source}-mlm")
        assert round(row["sparsity"], 3) == 0.5 and 0 <= row["score"] <= 100
