"""Every speed-up is the same computation: packing, parts of a batch, selection by a sample, compiled layers, no waiting."""

import contextlib
import functools
import gc
import math
import re
import resource
import subprocess
import sys
from pathlib import Path

import launch
import numpy as np
import pytest
import tiny
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertForQuestionAnswering

from utils import (
    cli,
    glue,
    glue_data,
    graphs,
    masks,
    mlm,
    models,
    seeds,
    selection,
    squad,
    squad_data,
    text,
    training,
)
from utils.errors import UserError
from utils.rows import Rows, pack
from utils.training import Recipe, Trainer

CPU = torch.device("cpu")
TASKS = ["MRPC", "STS-B", "squad", "mlm"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speed")
    tiny.bert(folder / "bert", layers=3)
    for name in ("MRPC", "STS-B"):
        tiny.glue(folder / name, name, train=40, dev=30)
    tiny.squad(folder / "squad", train=6, dev=4)
    tiny.text(folder / "text")
    return folder


def read(place, name, pad_to=None):
    """A task with its data."""
    tokenizer = models.load_tokenizer(str(place / "bert"), True)
    if name == "squad":
        task = squad.SquadTask(squad.AnswerOptions(), pad_to)
        found = [
            squad_data.load(
                str(place / "squad" / f"{part}-v1.1.json"),
                False,
                part == "train",
                tokenizer,
                48,
                16,
                12,
                1,
                None,
                False,
            )
            for part in ("train", "dev")
        ]
        task.train, task.dev = found[0][1], found[1]
    elif name == "mlm":
        task = mlm.MlmTask(tokenizer)
        task.train = text.load_blocks(
            place / "text" / "en.train", tokenizer, 24, True, place / "text", False, 1
        )
    else:
        task = glue.GlueTask(glue_data.find_spec(name), pad_to)
        task.read(place / name, tokenizer, 48, True, True, cache_dir=place)
    return task


def network(place, task, sparsity=0.3):
    """The task's model under a mask."""
    config = models.load_config(str(place / "bert"), num_labels=getattr(task, "labels", 2))
    model = models.load_model(task.model_class, str(place / "bert"), config, 1)
    masks.attach(model)
    masks.prune_to(model, sparsity)
    return model


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_alike(found, expected, tolerance):
    """Relative to each matrix's largest gradient; some have none but rounding, such as a key's bias."""
    assert found.keys() == expected.keys()
    smallest = 1e-2 * max(value.abs().max() for value in expected.values())
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= tolerance * max(smallest, value.abs().max()), (
            name
        )


# ---- packed rows


def padded_windows(task, rows):
    """Windows as transformers takes them: ids, types, attention, [B, W]; and where there is no token."""
    packed = pack(task.train.rows, rows)
    ids, types, attended = (
        torch.zeros(len(rows) * packed.width, dtype=torch.int64)
        .index_copy(0, packed.slots, values)
        .view(len(rows), -1)
        for values in (packed.ids[0], packed.types[0], torch.ones_like(packed.slots))
    )
    return {"input_ids": ids, "token_type_ids": types, "attention_mask": attended}, attended == 0


def test_packed_windows_of_squad_have_the_loss_and_gradients_of_padded_ones(place):
    task, rows = read(place, "squad"), np.arange(7)
    assert len(set(task.lengths(rows))) == 3
    plain = (
        BertForQuestionAnswering.from_pretrained(place / "bert", attn_implementation="eager")
        .double()
        .eval()
    )
    model = models.load_model(
        task.model_class, str(place / "bert"), models.load_config(str(place / "bert")), 1
    )
    plain.qa_outputs.load_state_dict(model.qa_outputs.state_dict())
    batch, empty = padded_windows(task, rows)
    found = plain(**batch)
    logits = [
        part.masked_fill(empty, -torch.inf) for part in (found.start_logits, found.end_logits)
    ]
    answers = [
        torch.from_numpy(getattr(task.train, end)[rows].astype(np.int64))
        for end in ("start", "end")
    ]
    expected = (
        sum(nn.functional.cross_entropy(*pair) for pair in zip(logits, answers, strict=True)) / 2
    )
    expected.backward()
    loss = task.loss(model.double().eval(), task.train_batch(rows, (), CPU))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_alike(
        {k: v for k, v in gradients(model).items() if "pooler" not in k}, gradients(plain), 5e-6
    )  # softmax in float32


def test_evaluation_without_padding_gives_the_logits_of_padded_rows(place):
    for name in ("MRPC", "STS-B"):
        packed, padded = read(place, name), read(place, name, 48)
        model, (rows, _) = network(place, packed).double(), packed.dev["dev"]
        assert len(set(rows.lengths())) > 5
        found, expected = (task.predict(model, rows, CPU) for task in (packed, padded))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert np.ptp(expected) > 0.01


def test_evaluation_of_squad_without_padding_gives_the_logits_of_padded_windows(place):
    packed, padded = read(place, "squad"), read(place, "squad", 48)
    model = network(place, packed).double()
    sizes = packed.dev[1].rows.lengths()
    assert len(set(sizes)) > 3
    for found, expected in zip(packed.predict(model, CPU), padded.predict(model, CPU), strict=True):
        for one, other, size in zip(found, expected, sizes, strict=True):
            assert len(one) == size
            np.testing.assert_allclose(one, other[:size], rtol=1e-5, atol=1e-6)


# ---- a batch in parts


@pytest.mark.parametrize("name", ["MRPC", "STS-B", "squad"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_batch_worked_on_in_parts_has_the_loss_and_gradients_of_the_whole(
    place, monkeypatch, name, accumulation
):
    task = read(place, name)
    batches = [np.arange(9), np.arange(9, 20)][:accumulation]
    found, parts = [], []
    for room in (math.inf, 6e5, 1e3):
        monkeypatch.setattr(training, "ACTIVATION_BYTES", room)
        trainer = Trainer(
            network(place, task).double().eval(),
            task,
            Recipe(1e-3, 9, accumulation, max_grad_norm=1e9),
            CPU,
        )
        loss, norm = trainer.step(batches, 1e-3, (1, 0, 0))
        found.append((float(loss), float(norm), gradients(trainer.model)))
        parts.append(sum(1 for _ in trainer.parts(batches)))
    assert parts[0] == accumulation < parts[1] < parts[2]
    for loss, norm, values in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6) and norm == pytest.approx(
            found[0][1], rel=1e-6
        )
        assert_alike(values, found[0][2], 1e-6)


# ---- selection


def linear_model(values):
    """Matrices as a module, for torch's own prune."""
    layers = nn.ModuleList(nn.Linear(value.shape[1], value.shape[0]) for value in values)
    for layer, value in zip(layers, values, strict=True):
        layer.weight.data.copy_(value)
    return layers


@pytest.mark.parametrize("digits", [None, 2, 0])
def test_selection_is_that_of_torch_but_for_ties(digits):
    draw = torch.Generator().manual_seed(4)
    values = [torch.randn(shape, generator=draw) for shape in ((300, 40), (7, 900), (50, 50))]
    values = values if digits is None else [value.round(decimals=digits) for value in values]
    layers, total = linear_model(values), sum(value.numel() for value in values)
    kept = None
    for before, target in ((0.0, 0.1), (0.1, 0.2), (0.2, 0.7), (0.7, 0.9)):
        prune.global_unstructured(
            [(layer, "weight") for layer in layers],
            prune.L1Unstructured,
            amount=round(target * total) - round(before * total),
        )
        found = masks.magnitude({str(at): value for at, value in enumerate(values)}, target, kept)
        expected = [layer.weight_mask.bool() for layer in layers]
        assert [sum(int(m.sum()) for m in some) for some in (found.values(), expected)] == [
            total - round(target * total)
        ] * 2
        differing = torch.cat(
            [
                value.abs()[one != other]
                for value, one, other in zip(values, found.values(), expected, strict=True)
            ]
        )
        assert (
            (len(differing) == 0) if digits is None else len(differing.unique()) <= 1
        )  # the threshold, at most
        kept = {str(at): mask for at, mask in enumerate(expected)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_selection_by_torch_alone_as_on_a_gpu_is_that_of_numpy(monkeypatch, dtype):
    draw = torch.Generator().manual_seed(5)
    values = {
        name: nn.Parameter(torch.randn(shape, generator=draw).round(decimals=2).to(dtype))
        for name, shape in (("a", (120, 60)), ("b", (30, 500)))
    }
    found = [{} for _ in range(2)]
    for masks_found in found:
        kept = None
        for target in (0.0, 0.2, 0.5, 0.9, 1.0):
            mask = masks.magnitude(values, target, kept)
            masks_found |= {(target, key): value for key, value in mask.items()}
            kept = {name: mask[name + masks.SUFFIX] for name in values}
        monkeypatch.setattr(selection, "_by_numpy", lambda tensor: False)
    assert all(torch.equal(found[1][key], value) for key, value in found[0].items())
    assert all(value.dtype == torch.bool and not value.requires_grad for value in found[1].values())


# ---- compiled layers


def counting(graphs):
    """A backend that runs the graph as it stands and counts."""

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    return backend


def train_rounds(trainer, rows):
    """Two steps a round on rows of several lengths, a prune and a rewind after each; losses, norms and gradients."""
    theta, found = masks.snapshot(trainer.model), []
    for round_ in range(2):
        seeds.seed_round(5, round_)
        trainer.model.train()
        for step in range(2):
            loss, norm = trainer.step([rows[round_ * 2 + step]], 1e-2, (5, round_, step))
            found.append({"loss": loss.clone(), "norm": norm.clone(), **gradients(trainer.model)})
        masks.prune_to(trainer.model, 0.5 + round_ / 10)
        masks.rewind(trainer.model, theta)
        trainer.restart()
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_layers_compute_the_same_dropout_included_and_share_one_graph(place, precision):
    torch.compiler.reset()
    task, graphs, found = read(place, "MRPC"), [], []
    rows = [np.arange(6), np.arange(6, 20), np.arange(20, 23), np.arange(23, 40)]
    for compiled in (False, True):
        model = network(place, task)
        names = list(model.state_dict()), [name for name, _ in model.named_parameters()]
        if compiled:
            models.compile_layers(model, counting(graphs))
        found.append(
            train_rounds(Trainer(model, task, Recipe(1e-2, 9, precision=precision), CPU), rows)
        )
        assert (list(model.state_dict()), [name for name, _ in model.named_parameters()]) == names
    assert (
        model.bert.encoder.layer[0].training and len(graphs) == 1
    )  # three layers, four batches, masks that change
    for plain, same in zip(*found, strict=True):
        assert plain.keys() == same.keys() and all(
            torch.equal(same[key], value) for key, value in plain.items()
        )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_layers_hand_out_hidden_states_and_no_weights(place, precision):
    torch.compiler.reset()
    task, graphs = read(place, "MRPC"), []
    model = network(place, task)
    models.compile_layers(model, counting(graphs))
    trainer = Trainer(model, task, Recipe(1e-2, 9, precision=precision), CPU)
    trainer.step([np.arange(6)], 1e-2, (1, 0, 0))
    handed_out = [
        node.meta["example_value"].shape for node in graphs[0].graph.output_node().args[0]
    ]
    assert (
        len(handed_out) == 1
        and handed_out[0][0] == 1
        and handed_out[0][-1] == model.config.hidden_size
    )
    assert {value.dtype for name, value in model.named_buffers() if name.endswith("_mask")} == {
        torch.bool
    }


def test_a_model_with_compiled_layers_is_the_same_to_checkpoints_and_masks(place):
    task = read(place, "MRPC")
    plain, compiled = network(place, task), network(place, task)
    models.compile_layers(compiled, counting([]))
    assert masks.fingerprint(compiled) == masks.fingerprint(plain)
    found = masks.current(compiled)
    assert masks.digest(found) == masks.digest(masks.current(plain))
    masks.prune_to(compiled, 0.6)
    masks.prune_to(plain, 0.6)
    assert masks.sparsity(found) == pytest.approx(
        0.3, abs=1e-4
    )  # a copy: what was taken before stays
    fresh = network(place, task)
    models.compile_layers(fresh, counting([]))
    for state in (plain.state_dict(), compiled.state_dict()):
        masks.assign(
            fresh,
            masks.random(
                {n: m.weight_mask.shape for n, m in masks.prunable(fresh).items()}, 0.9, 1
            ),
        )
        fresh.load_state_dict(state)
        assert masks.digest(masks.current(fresh)) == masks.digest(masks.current(plain))
    dense = [masks.dense_state(model) for model in (plain, compiled)]
    assert dense[0].keys() == dense[1].keys() and all(
        torch.equal(dense[1][name], value) for name, value in dense[0].items()
    )


def imp(place, out, *more):
    return launch.done(
        "LT_glue.py",
        "--output_dir",
        out,
        "--task_name",
        "MRPC",
        "--data_dir",
        place / "MRPC",
        "--do_train",
        "--do_eval",
        "--do_lower_case",
        "--max_seq_length",
        48,
        "--model_name_or_path",
        place / "bert",
        "--max_steps",
        6,
        "--save_steps",
        2,
        "--learning_rate",
        1e-3,
        "--no_cuda",
        *more,
    )


def test_a_compiled_run_leaves_what_a_plain_one_leaves(place, tmp_path, monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr("utils.cli.check_compiler", lambda _: None)  # the backend here needs none
    compile_layers, graphs = models.compile_layers, []
    monkeypatch.setattr(
        models, "compile_layers", functools.partial(compile_layers, backend=counting(graphs))
    )
    imp(place, tmp_path / "plain", "--compile", "--no_compile")
    assert not graphs
    imp(place, tmp_path / "compiled", "--compile")
    assert graphs
    files = [
        sorted(
            p.relative_to(tmp_path / run)
            for p in (tmp_path / run).rglob("*")
            if "tfevents" not in p.name
        )
        for run in ("plain", "compiled")
    ]
    assert files[0] == files[1]
    for file in (f for f in files[0] if f.name in ("mask.pt", "model.safetensors")):
        assert (tmp_path / "plain" / file).read_bytes() == (
            tmp_path / "compiled" / file
        ).read_bytes(), file
    scores = [
        [row["metrics"] for row in launch.results(tmp_path / run)] for run in ("plain", "compiled")
    ]
    assert scores[0] == scores[1] and len(scores[0]) == 3


@pytest.mark.parametrize(
    ("flag", "said"), [("--tf32", "--tf32 needs a GPU"), ("--compile", "needs a C++ compiler")]
)
def test_flags_that_this_machine_cannot_follow_are_refused_in_one_line(
    place, tmp_path, monkeypatch, flag, said
):
    monkeypatch.setattr("shutil.which", lambda name: None)
    ended = launch.run(
        "LT_glue.py",
        "--output_dir",
        tmp_path / "out",
        "--task_name",
        "MRPC",
        "--data_dir",
        place / "MRPC",
        "--do_train",
        "--model_name_or_path",
        place / "bert",
        "--no_cuda",
        flag,
    )
    assert (
        ended.code == 2
        and len(ended.errors()) == 1
        and said in ended.err
        and not (tmp_path / "out").exists()
    )


@pytest.mark.parametrize(
    ("device", "there", "said"),
    [
        ("cpu", ["clang++"], None),
        ("cpu", ["gcc"], "a C++ compiler such as g++"),
        ("cuda", ["gcc"], None),
        ("cuda", ["g++"], "a C compiler such as gcc"),
    ],
)
def test_compile_asks_for_the_compiler_that_the_device_needs(monkeypatch, device, there, said):
    monkeypatch.setattr("shutil.which", lambda name: name if name in there else None)
    monkeypatch.setattr(
        "sysconfig.get_paths", lambda: {"include": str(Path(__file__).parent / "include")}
    )
    with pytest.raises(
        UserError, match=re.escape(said or "Python.h; install Python's development files")
    ):
        cli.check_compiler(torch.device(device))
    monkeypatch.setattr("pathlib.Path.exists", lambda path: path.name == "Python.h")
    if said is None:
        cli.check_compiler(torch.device(device))


def test_cudnn_attention_is_off():
    assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()


# ---- recorded steps


@pytest.fixture
def recordings(monkeypatch):
    """Steps recorded without a GPU: a replay does again what was done, with what is then in the batch recorded."""
    made = []

    class Graph:
        def __init__(self, work, pool):
            assert pool == (made[0].pool() if made else None)
            self.replay = work
            made.append(self)

        def pool(self):
            return "pool"

    monkeypatch.setattr(graphs, "record", Graph)
    return made


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_in_one_of_few_shapes_has_its_loss_and_gradients(place, name):
    task, found, shapes = read(place, name), [], ([], [])
    for start in range(5):
        batch = task.train_batch(np.arange(start, start + 6), (1, 0, 0), CPU)
        for same, seen in zip((batch, batch.evened()), shapes, strict=True):
            model = network(place, task).double().eval()
            loss = task.loss(model, same)
            loss.backward()
            found.append((loss.item(), gradients(model)))
            seen.append(same.shape())
        tokens, width = same.packed.ids.shape[1], same.packed.width
        assert (
            width % 32 == tokens % width == 0
            and batch.packed.ids.shape[1] <= tokens < batch.packed.ids.shape[1] + width
        )
        assert len(same.packed.slots.unique()) == tokens and same.packed.lengths.min() > 0
    for (loss, values), (evened_loss, evened) in zip(found[::2], found[1::2], strict=True):
        assert evened_loss == pytest.approx(loss, rel=1e-6)
        assert_alike(evened, values, 1e-6)
    assert len({loss for loss, _ in found[::2]}) == 5 and len(set(shapes[1])) < len(set(shapes[0]))


@pytest.mark.parametrize(
    ("width", "tokens", "lengths", "full"),
    [(64, 192, [64] * 3, True), (40, 128, [40] * 3 + [8], False)],
)
def test_full_rows_of_a_round_width_stay_full(width, tokens, lengths, full):
    packed = pack(Rows.from_lists([[2] * width] * 3, [[0] * width] * 3), np.arange(3))
    found = packed.evened()
    assert (
        packed.full
        and found.full == full
        and found.ids.shape[1] == tokens
        and found.lengths.tolist() == lengths
    )


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_recorded_steps_are_those_that_are_not_through_prunes_and_rewinds(
    place, recordings, name, accumulation
):
    task, found = read(place, name), []
    batches = [[np.arange(k % 3, 6 + k % 3), np.arange(7, 13)][:accumulation] for k in range(12)]
    for recorded in (False, True):
        trainer = Trainer(
            network(place, task).double().eval(), task, Recipe(1e-2, 6), CPU, recorded
        )
        theta, steps = masks.snapshot(trainer.model), []
        for k, batch in enumerate(batches):
            loss, norm = trainer.step(batch, 1e-2, (1, 0, k))
            steps.append((float(loss), float(norm)))
            if k % 5 == 4:
                masks.prune_to(trainer.model, 0.4 + k / 20)
                masks.rewind(trainer.model, theta)
                trainer.restart()
        found.append(
            (
                steps,
                {name: p.detach().clone() for name, p in trainer.model.named_parameters()},
                {name for name, p in trainer.model.named_parameters() if p.grad is None},
            )
        )
    assert 0 < len(recordings) < len(batches) and len(set(found[0][0])) == len(batches)
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-4)
    for name_, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][name_], value, rtol=1e-4, atol=1e-4)
    assert (
        found[1][2] == found[0][2]
    )  # no gradient, not even of zeros: the optimizer leaves these alone


def test_shapes_are_recorded_the_second_time_and_up_to_a_limit(place, recordings, monkeypatch):
    task = read(place, "MRPC")
    trainer, counts = Trainer(network(place, task), task, Recipe(1e-3, 6), CPU, recorded=True), []
    monkeypatch.setattr(graphs, "MOST", 2)
    for rows in (3, 3, 3, 5, 5, 9, 9, 9, 3, 5):
        trainer.step([np.arange(rows)], 1e-3, (1, 0, 0))
        counts.append(len(recordings))
    assert counts == [0, 1, 1, 1, 2, 2, 2, 2, 2, 2]


def test_where_memory_is_short_recordings_are_given_up_and_training_goes_on(
    place, monkeypatch, capsys, recordings
):
    task, found, kept, whole = read(place, "MRPC"), [], [], graphs.record
    for room in (100, 1):  # recordings that there is memory for

        def short(work, pool, room=room):
            made = whole(work, pool)
            if len(recordings) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return made

        recordings.clear()
        monkeypatch.setattr(graphs, "record", short)
        trainer = Trainer(network(place, task).eval(), task, Recipe(1e-3, 6), CPU, recorded=True)
        found.append(
            [
                float(trainer.step([np.arange(rows)], 1e-3, (1, 0, 0))[0])
                for rows in (3, 3, 3, 9, 9, 9, 3, 5, 5, 3)
            ]
        )
        kept.append(len(trainer.graphs._recorded))
    assert found[1] == found[0] and kept == [3, 0]
    assert capsys.readouterr().err.count("not enough memory to replay CUDA graphs") == 1


def test_passes_recorded_or_not_are_on_one_stream_between_what_comes_before_and_after(
    place, recordings, monkeypatch
):
    class Stream:
        device = None

        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def entered(stream):
        at.append(stream)
        yield
        at.pop()

    task, log, at = read(place, "MRPC"), [], [Stream("main")]
    trainer = Trainer(network(place, task), task, Recipe(1e-3, 6), CPU, recorded=True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: at[-1])
    monkeypatch.setattr(torch.cuda, "stream", entered)
    trainer.graphs._stream, compute = Stream("side"), trainer.graphs._compute
    monkeypatch.setattr(
        trainer.graphs, "_compute", lambda *a: (log.append(f"on {at[-1].name}"), compute(*a))
    )
    for _ in range(3):
        trainer.step([np.arange(6)], 1e-3, (1, 0, 0))
    assert (
        len(recordings) == 1
        and log == ["side waits for main", "on side", "main waits for side"] * 3
    )


def test_nothing_is_collected_while_a_pass_is_recorded():
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), graphs.uncollected():
            assert not gc.isenabled()
            raise ZeroDivisionError
        assert gc.isenabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu_replayed_steps_are_those_that_are_not_dropout_included(
    place, monkeypatch, name, precision
):
    task, found = read(place, name), []
    for most in (0, 100):  # none recorded, all
        monkeypatch.setattr(graphs, "MOST", most)
        trainer = Trainer(
            network(place, task),
            task,
            Recipe(1e-4, 6, precision=precision),
            torch.device("cuda"),
            recorded=True,
        )
        seeds.seed_round(5, 0)
        trainer.model.train()
        steps = [trainer.step([np.arange(k % 3, 6 + k % 3)], 1e-4, (1, 0, k)) for k in range(12)]
        found.append([(float(loss), float(norm)) for loss, norm in steps])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3)


# ---- a step that never waits


class NoWaiting(TorchDispatchMode):
    """Fails at what makes the process wait for a GPU: a value read, or a result whose size depends on values."""

    waiting = {
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
        torch.ops.aten.equal.default,
        torch.ops.aten.repeat_interleave.Tensor,
    }

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func is torch.ops.aten.index.Tensor and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        assert func not in self.waiting and not by_mask, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("recorded", [False, True])
def test_a_step_reads_nothing_back_from_the_device(place, recordings, name, recorded):
    task, rows = read(place, name), np.arange(12)
    assert name == "mlm" or len(set(task.lengths(rows))) > 1
    trainer = Trainer(network(place, task), task, Recipe(1e-3, 12, weight_decay=0.1), CPU, recorded)
    with NoWaiting():
        for _ in range(3):
            trainer.step([rows], 1e-3, (1, 0, 0))
    assert len(recordings) == recorded
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        float(trainer.step([rows], 1e-3, (1, 0, 1))[0])


# ---- memory kept from step to step


def test_freed_memory_goes_back_once_there_is_more_than_a_step_needs(monkeypatch):
    trims, sizes = [], iter([5e9, 1e9, 2.9e9, 3.1e9, 1.2e9, 3.1e9, 3.1e9, 1.1e9])
    library = type("Library", (), {"mallopt": lambda *_: 1, "malloc_trim": trims.append})
    monkeypatch.setattr(training.ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(training, "resident_bytes", lambda: next(sizes))
    give_back, seen = training.keep_freed_memory(CPU), []
    for _ in range(4):
        give_back()
        seen.append(len(trims))
    assert seen == [
        1,
        1,
        2,
        2,
    ]  # 5 GB at first; 2.9 is within 2 of the 1 in use, 3.1 is not; then it is within 2 of 1.2
    give_back(0)  # at the end of a round
    assert len(trims) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_resident_memory_is_in_bytes():
    highest = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert 0.05 * highest < training.resident_bytes() < 1.1 * highest


# ---- imports


def test_the_collector_is_off_for_the_imports_alone():
    code = (
        "import gc; from utils import cli; print(gc.isenabled(), gc.get_freeze_count() > 100_000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=launch.ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True True\n"
