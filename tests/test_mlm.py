"""Masked language modelling through its scripts: what a round trains and prunes, its evaluation, its models and tickets."""

import itertools
import json
import math

import launch
import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from launch import done, results
from safetensors.torch import load_file
from transformers import BertForMaskedLM, BertForPreTraining

from utils import masks, mlm, models, text
from utils.models import encode

BLOCK = 24


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlm")
    tiny.bert(folder / "bert", dropout=0.0)
    tiny.text(folder / "text")
    tiny.glue(folder / "MRPC", "MRPC", train=24, dev=10)
    tiny.squad(folder / "squad", train=4, dev=2)
    return folder


def command(place, out, *more):
    return [
        "--output_dir",
        out,
        "--mlm",
        "--train_data_file",
        place / "text" / "en.train",
        "--do_train",
        "--do_eval",
        "--eval_data_file",
        place / "text" / "en.valid",
        "--block_size",
        BLOCK,
        "--per_gpu_train_batch_size",
        8,
        "--learning_rate",
        1e-3,
        "--no_cuda",
        *more,
    ]


def bert(place):
    return ["--model_name_or_path", place / "bert"]


def mask_at(folder, step):
    return torch.load(folder / f"checkpoint-{step}" / "mask.pt", weights_only=True)


@pytest.fixture(scope="module")
def rounds(place):
    """LT_pretrain.py with three rounds of four steps."""
    done(
        "LT_pretrain.py",
        *command(
            place,
            place / "rounds",
            *bert(place),
            "--max_steps",
            12,
            "--save_steps",
            4,
            "--sparsities",
            0.3,
            0.6,
        ),
    )
    return place / "rounds"


@pytest.fixture(scope="module")
def task(place):
    config = models.load_config(str(place / "bert"))
    task = mlm.MlmTask(models.load_tokenizer(str(place / "bert"), True))
    task.train, task.dev = (
        text.load_blocks(
            place / "text" / name, task.tokenizer, BLOCK, False, place / "text", False, 1
        )
        for name in ("en.train", "en.valid")
    )
    return task, models.load_model(task.model_class, str(place / "bert"), config, 1)


# ---- rounds


def test_each_round_trains_the_mask_before_from_theta_0_the_head_too(place, tmp_path, steps):
    done(
        "LT_pretrain.py",
        *command(
            place,
            tmp_path / "out",
            *bert(place),
            "--max_steps",
            9,
            "--save_steps",
            3,
            "--sparsities",
            0.3,
            0.6,
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


def test_masks_have_the_pooler_whose_weights_stay_as_pre_trained(place, rounds):
    """It gets no gradient, but takes part in the ranking."""
    before = load_file(place / "bert" / "model.safetensors")["bert.pooler.dense.weight"]
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


def test_as_released_prunes_before_training_and_never_rewinds(place, tmp_path, steps):
    done(
        "LT_pretrain.py",
        *command(
            place,
            tmp_path / "out",
            *bert(place),
            "--max_steps",
            12,
            "--save_steps",
            4,
            "--as_released",
        ),
    )
    total = sum(m.numel() for m in steps[0]["mask"].values())
    for at, sparsity in ((0, 0.1), (4, 0.2)):
        assert sum(int((~m).sum()) for m in steps[at]["mask"].values()) == round(sparsity * total)
    expected = masks.magnitude(
        {
            key: steps[0]["weights"][f"{key}.weight_orig"]
            for key in (name.removesuffix(".weight_mask") for name in steps[0]["mask"])
        },
        0.1,
    )
    assert all(torch.equal(steps[0]["mask"][key], kept) for key, kept in expected.items())
    assert not any(
        torch.equal(steps[4]["weights"][name], value)
        for name, value in steps[3]["weights"].items()
        if "weight_orig" in name and "pooler" not in name
    )  # step 5 goes on from what step 4 left ...
    start, end = (
        step["weights"]["bert.encoder.layer.0.output.dense.weight_orig"]
        for step in (steps[0], steps[4])
    )
    assert (start - end).abs().max() > 1e-3  # ... which is not theta_0


@pytest.mark.parametrize("released", [False, True])
def test_the_data_begin_anew_or_run_on(place, tmp_path, steps, released):
    flags = ["--as_released"] if released else []
    done(
        "LT_pretrain.py",
        *command(
            place,
            tmp_path / "out",
            *bert(place),
            "--max_steps",
            8,
            "--save_steps",
            4,
            "--sparsities",
            0.3,
            0.6,
            0.9,
            "--seed",
            3,
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
        assert rows[0] != rows[4]  # an order of its own


def test_a_run_may_be_longer_than_an_epoch_and_has_exactly_its_steps(place, tmp_path, steps):
    done(
        "pretrain_trans.py",
        *command(place, tmp_path / "out", *bert(place), "--dir", "pre", "--max_steps", 31),
    )
    rows = [step["rows"] for step in steps]
    epoch = next(number for number, batch in enumerate(rows) if len(batch) < 8) + 1
    assert len(rows) == 31 and epoch < 31
    for start in range(0, 31 - epoch, epoch):
        seen = list(itertools.chain.from_iterable(rows[start : start + epoch]))
        assert sorted(seen) == list(range(len(seen)))


# ---- loss and evaluation


def test_the_loss_at_the_masked_tokens_alone_is_that_of_the_whole_decoder(task):
    task, model = task
    rows = np.arange(6)
    model.eval()
    batch = task.train_batch(rows, (1, 0, 0, 0), torch.device("cpu"))
    loss = task.loss(model, batch)
    loss.backward()
    few = {
        name: value.grad.clone()
        for name, value in model.named_parameters()
        if value.grad is not None
    }
    model.zero_grad()
    everything = model.cls(encode(model.bert, batch.packed))
    labels = torch.full((len(everything),), -100).index_copy(0, batch.places, batch.targets)
    whole = F.cross_entropy(everything, labels)
    whole.backward()
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)
    for name, value in model.named_parameters():
        if value.grad is not None:
            assert torch.allclose(few[name], value.grad, rtol=1e-4, atol=1e-7), name
    model.zero_grad()


def test_the_loss_is_that_of_transformers(task, place):
    task, model = task
    reference = BertForMaskedLM.from_pretrained(place / "bert").eval()
    model.eval()
    batch = task.train_batch(np.arange(5), (1, 0, 0, 0), torch.device("cpu"))
    ids = batch.packed.ids.view(5, BLOCK)
    labels = (
        torch.full((5 * BLOCK,), -100).index_copy(0, batch.places, batch.targets).view(5, BLOCK)
    )
    with torch.no_grad():
        expected = reference(input_ids=ids, labels=labels).loss
        assert task.loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_evaluation_does_not_depend_on_the_batches_and_agrees_to_the_digit(
    task, tmp_path, monkeypatch
):
    task, model = task
    found = []
    for tokens in (BLOCK, 5 * BLOCK, mlm.EVALUATION_TOKENS, mlm.EVALUATION_TOKENS):
        monkeypatch.setattr(mlm, "EVALUATION_TOKENS", tokens)
        found.append(task.evaluate(model, torch.device("cpu"), "fp32", tmp_path, ""))
    assert found[2] == found[3]
    for one in found:
        assert one["accuracy"] == found[0]["accuracy"]
        assert one["perplexity"] == pytest.approx(found[0]["perplexity"], rel=1e-6)


def test_accuracy_and_perplexity_are_over_the_masked_tokens(task, tmp_path):
    task, model = task
    right = masked = 0
    loss = 0.0
    model.eval()
    for batch in task._dev_batches(torch.device("cpu"), 0):
        with torch.no_grad():
            scores = model.cls(encode(model.bert, batch.packed)).log_softmax(-1)[batch.places]
        right += int((scores.argmax(-1) == batch.targets).sum())
        loss -= float(scores.gather(1, batch.targets[:, None]).double().sum())
        masked += len(batch.targets)
    found = task.evaluate(model, torch.device("cpu"), "fp32", tmp_path, "")
    share = masked / (len(task.dev) * (BLOCK - 2))
    assert found == {
        "accuracy": right / masked,
        "perplexity": pytest.approx(math.exp(loss / masked), rel=1e-6),
    }
    assert 0.1 < share < 0.2


# ---- models


def tied(folder):
    """Whether the saved model has one matrix for embeddings and decoder, as transformers loads it; the model."""
    model, info = BertForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not info["unexpected_keys"] - {
        name for name in info["unexpected_keys"] if "pooler" in name
    }
    return (
        model.cls.predictions.decoder.weight.data_ptr()
        == model.bert.embeddings.word_embeddings.weight.data_ptr(),
        model,
    )


def test_decoder_and_embeddings_stay_one_matrix(rounds, place, tmp_path, steps):
    for step in (4, 8, 12):
        one, model = tied(rounds / f"checkpoint-{step}")
        assert one
        before = load_file(place / "bert" / "model.safetensors")[
            "bert.embeddings.word_embeddings.weight"
        ]
        assert not torch.equal(model.bert.embeddings.word_embeddings.weight, before)  # trained
    done(
        "pretrain_trans.py",
        *command(
            place,
            tmp_path / "out",
            "--model_name_or_path",
            rounds / "checkpoint-12",
            "--dir",
            "pre",
            "--max_steps",
            2,
        ),
    )
    for step in steps:  # one name for it among all parameters
        assert not any("decoder.weight" in name for name in step["weights"])


def test_a_bert_trained_from_scratch_is_a_model_for_every_script(place, tmp_path):
    scratch = tmp_path / "scratch"
    done(
        "pretrain_trans.py",
        *command(
            place,
            scratch,
            "--dir",
            "rand",
            "--config_name",
            place / "bert",
            "--tokenizer_name",
            place / "bert",
            "--max_steps",
            40,
            "--learning_rate",
            3e-3,
            "--evaluate_during_training",
            "--logging_steps",
            10,
        ),
    )
    perplexities = [row["metrics"]["perplexity"] for row in results(scratch)]
    assert perplexities[-1] < 0.7 * len(tiny.VOCABULARY) and perplexities == sorted(
        perplexities, reverse=True
    )
    info = BertForPreTraining.from_pretrained(scratch, output_loading_info=True)[1]
    assert all(
        "seq_relationship" in name for name in info["missing_keys"]
    )  # next-sentence prediction alone is missing
    done(
        "LT_pretrain.py",
        *command(
            place,
            tmp_path / "random",
            "--config_name",
            place / "bert",
            "--tokenizer_name",
            place / "bert",
            "--max_steps",
            2,
            "--save_steps",
            1,
            "--sparsities",
            0.5,
        ),
    )
    assert {row["init"] for row in results(tmp_path / "random")} == {"rand"}
    theta_0 = load_file(scratch / "model.safetensors")
    done(
        "LT_pretrain.py",
        *command(
            place,
            tmp_path / "imp",
            "--model_name_or_path",
            scratch,
            "--max_steps",
            4,
            "--save_steps",
            2,
            "--sparsities",
            0.5,
        ),
    )
    done("glue_trans.py", *glue(place, tmp_path / "glue", "--model_name_or_path", scratch))
    done(
        "oneshot.py",
        "--weight",
        "pre",
        "--model",
        "pretrain",
        "--rate",
        0.5,
        "--model_name_or_path",
        scratch,
        "--output_dir",
        tmp_path / "omp",
    )
    mask = torch.load(tmp_path / "omp" / "mask.pt", weights_only=True)
    values = {key: theta_0[key.removesuffix("_mask")] for key in mask}
    kept, dropped = (
        torch.cat([v[mask[k] if keep else ~mask[k]].abs() for k, v in values.items()])
        for keep in (True, False)
    )
    assert kept.min() >= dropped.max()


def test_as_released_needs_two_sparsities(place, tmp_path):
    ended = launch.run(
        "LT_pretrain.py",
        *command(
            place,
            tmp_path / "out",
            *bert(place),
            "--max_steps",
            8,
            "--save_steps",
            4,
            "--sparsities",
            0.3,
            "--as_released",
        ),
    )
    (line,) = ended.errors()
    assert ended.code == 2 and "--sparsities" in line and "at least two" in line


def test_a_vocabulary_larger_than_the_embeddings_is_refused(place, tmp_path):
    small = tiny.bert(tmp_path / "small", vocab_size=len(tiny.VOCABULARY) - 1)
    ended = launch.run(
        "LT_pretrain.py",
        *command(place, tmp_path / "out", "--model_name_or_path", small, "--max_steps", 2),
    )
    (line,) = ended.errors()
    assert ended.code == 2 and "vocabulary" in line and not (tmp_path / "out").exists()


# ---- tickets go from task to task


def glue(place, out, *more):
    return [
        "--dir",
        "pre",
        "--output_dir",
        out,
        "--task_name",
        "MRPC",
        "--data_dir",
        place / "MRPC",
        "--do_train",
        "--do_eval",
        "--max_seq_length",
        32,
        "--per_gpu_train_batch_size",
        8,
        "--max_steps",
        2,
        "--no_cuda",
        *more,
    ]


def squad(place, out, *more):
    return [
        "--output_dir",
        out,
        "--train_file",
        place / "squad" / "train-v1.1.json",
        "--predict_file",
        place / "squad" / "dev-v1.1.json",
        "--do_train",
        "--do_eval",
        "--max_seq_length",
        48,
        "--doc_stride",
        16,
        "--max_query_length",
        12,
        "--per_gpu_train_batch_size",
        8,
        "--no_cuda",
        *more,
    ]


def trained_under(step, mask):
    return all(torch.equal(step["mask"][key], kept) for key, kept in mask.items())


def test_an_mlm_ticket_trains_on_glue_and_squad(place, rounds, tmp_path, steps):
    path = rounds / "checkpoint-8" / "mask.pt"
    ticket = [*bert(place), "--mask_dir", path]
    done("glue_trans.py", *glue(place, tmp_path / "glue", *ticket))
    assert trained_under(steps[-1], mask_at(rounds, 8))
    done(
        "squad_trans.py",
        *squad(place, tmp_path / "squad", "--dir", "pre", "--max_steps", 2, *ticket),
    )
    assert trained_under(steps[-1], mask_at(rounds, 8))
    entry = json.loads((rounds / "tickets.json").read_text())["tickets"][1]
    for task in ("glue", "squad"):
        (row,) = results(tmp_path / task)
        assert row["mask_sha256"] == entry["mask_sha256"] and row["mask_info"]["task"] == "mlm"


def test_tickets_of_glue_and_squad_train_on_mlm(place, tmp_path, steps):
    given = ["--max_steps", 4, "--save_steps", 2, "--sparsities", 0.5, *bert(place)]
    done("LT_glue.py", *glue(place, tmp_path / "glue", *given)[2:])
    done("squad_trans.py", *squad(place, tmp_path / "squad", *given))
    for source in ("glue", "squad"):
        path = tmp_path / source / "checkpoint-2" / "mask.pt"
        done(
            "pretrain_trans.py",
            *command(
                place,
                tmp_path / f"{source}-mlm",
                *bert(place),
                "--dir",
                "pre",
                "--mask_dir",
                path,
                "--max_steps",
                2,
            ),
        )
        assert trained_under(steps[-1], torch.load(path, weights_only=True))
        (row,) = results(tmp_path / f"{source}-mlm")
        assert round(row["sparsity"], 3) == 0.5 and 0 <= row["score"] <= 100
