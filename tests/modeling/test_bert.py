"""Models load with all their weights, draw the rest by seed, and compile to the same thing."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from small_tasks import RUNTIME, gradients, load_task, make_data, masked_model, training
from transformers import BertForPreTraining

from utils.errors import UserError
from utils.modeling import bert
from utils.modeling.bert import (
    MaskedLanguageModel,
    QuestionAnswerer,
    SequenceClassifier,
    compile_layers,
    load_config,
    load_model,
    load_tokenizer,
)
from utils.modeling.saving import load_initial_weights, save_pretrained, save_weights
from utils.pruning import masks
from utils.pruning.origin import Origin
from utils.training.order import seed_round
from utils.training.trainer import Trainer

CLASSES = (SequenceClassifier, QuestionAnswerer, MaskedLanguageModel)
HEADS = {SequenceClassifier: "classifier", QuestionAnswerer: "qa_outputs"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def source(folder):
    return str(folder / "bert")


# ---- loading


def test_every_task_has_the_pooler_with_its_pre_trained_weights(source):
    whole = BertForPreTraining.from_pretrained(source).bert.state_dict()
    assert "pooler.dense.weight" in whole
    for cls in CLASSES:
        state = load_model(cls, source, load_config(source), 1).bert.state_dict()
        assert all(torch.equal(state[name], value) for name, value in whole.items())


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_named_as_in_the_files_of_2018_load(tmp_path, file):
    source = tiny.bert(tmp_path / "bert")
    stored = load_file(source / "model.safetensors")
    weights = {name: torch.randn_like(value) for name, value in stored.items()}
    # as in bert-base-uncased; its decoder is the embeddings and has no bias of its own
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = {
        re.sub(r"LayerNorm\.\w+$", lambda m: names[m[0]], name): value
        for name, value in weights.items()
    }
    (source / "model.safetensors").unlink()
    if file == "model.safetensors":
        save_file(old, source / file, metadata={"format": "pt"})
    else:
        torch.save(old, source / file)
    for cls in CLASSES:
        state = load_model(cls, str(source), load_config(str(source)), 1).state_dict()
        absent = torch.empty(0)
        drawn = {n for n in state if not torch.equal(state[n], weights.get(n, absent))}
        encoders = [[n for n in names if n.startswith("bert.")] for names in (state, weights)]
        assert len(encoders[0]) == len(encoders[1])
        if cls is MaskedLanguageModel:
            decoder = "cls.predictions.decoder"
            embeddings = weights["bert.embeddings.word_embeddings.weight"]
            assert drawn == {f"{decoder}.weight", f"{decoder}.bias"}
            assert torch.equal(state[f"{decoder}.weight"], embeddings)
            assert torch.equal(state[f"{decoder}.bias"], weights["cls.predictions.bias"])
        else:
            assert {name.partition(".")[0] for name in drawn} == {HEADS[cls]}


@pytest.mark.parametrize("cls", CLASSES)
def test_drawn_weights_depend_on_the_seed_alone(source, cls):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    models = [
        load_model(cls, None, load_config(source), seed, "rand").state_dict() for seed in (3, 3, 4)
    ]
    one, two, other = models
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], value) for name, value in two.items())
    encoder = load_model(SequenceClassifier, None, load_config(source), 3, "rand").bert.state_dict()
    assert all(torch.equal(one[f"bert.{name}"], value) for name, value in encoder.items())
    name = "bert.encoder.layer.0.output.dense.weight"
    assert not torch.equal(one[name], other[name])
    assert one["bert.pooler.dense.bias"].count_nonzero() == 0
    assert one["bert.embeddings.word_embeddings.weight"][0].count_nonzero() == 0


def test_a_head_depends_on_the_seed_and_not_on_the_encoder(source):
    config = load_config(source)
    heads = [
        load_model(SequenceClassifier, source, config, seed, init).classifier.weight
        for seed, init in ((3, "pre"), (3, "rand"), (4, "pre"))
    ]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def rename_weight(folder, old, new):
    weights = load_file(folder / "model.safetensors")
    weights[new] = weights.pop(old)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "no file named model.safetensors"),
        (lambda f: (f / "vocab.txt").unlink(), "no vocab.txt; put it there"),
        (lambda f: (f / "config.json").unlink(), "no config.json; put it there"),
        (lambda f: (f / "config.json").write_text("{"), "the model folder cannot be loaded ("),
        (lambda f: (f / "config.json").write_text("[]"), "the model folder cannot be loaded ("),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot be loaded ("),
        (lambda f: change_config(f, model_type="roberta"), "a model of type roberta, not a BERT"),
        (lambda f: change_config(f, num_hidden_layers=4), "weight bert.encoder.layer.3."),
        (lambda f: change_config(f, num_hidden_layers=2), "unexpected encoder weight bert.enc"),
        (lambda f: change_config(f, intermediate_size=48), "has another shape than config.json"),
        (
            lambda f: rename_weight(f, "bert.pooler.dense.bias", "extra"),
            "encoder weight bert.pooler.dense.bias is missing (1 in all); not a whole BERT",
        ),
        (shutil.rmtree, "no such model folder, and not available from the hub ("),
    ],
)
def test_a_wrong_model_folder_is_refused_by_name(source, tmp_path, damage, message):
    model = str(shutil.copytree(source, tmp_path / "model"))
    damage(Path(model))
    with pytest.raises(UserError, match=re.escape(model) + ".*" + re.escape(message)):
        load_tokenizer(model, True)
        load_model(SequenceClassifier, model, load_config(model), 1)


def test_lengths_and_vocabularies_beyond_the_model_are_refused(source):
    config, tokenizer = load_config(source), load_tokenizer(source, True)
    bert.check_length(config, "--block_size", 64)
    bert.check_vocabulary(config, tokenizer)
    for length in (2, 65):
        with pytest.raises(UserError, match=f"--block_size {length} must lie between 3 and"):
            bert.check_length(config, "--block_size", length)
    tokenizer.add_tokens(["onemore"])
    with pytest.raises(UserError, match="--tokenizer_name: the vocabulary has"):
        bert.check_vocabulary(config, tokenizer)


def test_a_tokenizer_without_a_length_limit_loads(source):
    assert load_tokenizer(source, True).model_max_length > 10**9


def test_library_defaults_turn_cudnn_attention_off():
    bert.set_library_defaults()
    bert.set_library_defaults()
    assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()


# ---- saving


def test_a_saved_subnetwork_reloads_in_place(folder, source, tmp_path):
    task = load_task(folder, "MRPC")
    model, other = masked_model(folder, task), masked_model(folder, task)
    torch.nn.init.normal_(other.bert.pooler.dense.weight_orig)
    save_pretrained(model, task.tokenizer, tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert "packed_rows" not in json.dumps(config)
    bert.reload(other, str(tmp_path / "saved"))
    dense = masks.dense_state(model)
    assert all(torch.equal(masks.dense_state(other)[name], value) for name, value in dense.items())
    squad = load_model(QuestionAnswerer, source, load_config(source), 1)
    with pytest.raises(UserError, match=r"qa_outputs\.bias is missing; this checkpoint belongs"):
        bert.reload(squad, str(tmp_path / "saved"))


def test_weights_and_their_origin_are_saved_and_replace_the_encoder(folder, tmp_path):
    task, path = load_task(folder, "MRPC"), tmp_path / "weights.pt"
    model = masked_model(folder, task)
    theta = {name: value + 1 for name, value in masks.snapshot(model).items()}
    save_weights(theta, path, Origin(mode="rewound", seed=3))
    stored = torch.load(path, weights_only=True)
    assert not any("_orig" in name for name in stored)
    assert all(torch.equal(stored[name], value) for name, value in theta.items())
    plain = load_model(SequenceClassifier, str(folder / "bert"), task.bert_config, 1)
    head = plain.classifier.weight.clone()
    assert load_initial_weights(plain, None, "pre") == ("pre", None)
    assert load_initial_weights(plain, str(path), "rand")[0] == "rand+rewound"
    name, origin = load_initial_weights(plain, str(path), "pre")
    assert (name, origin.mode, origin.seed) == ("rewound", "rewound", 3)
    expected = theta["bert.encoder.layer.0.output.dense.weight"]
    assert torch.equal(plain.bert.encoder.layer[0].output.dense.weight, expected)
    assert torch.equal(plain.classifier.weight, head)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("bert.pooler.dense.weight"), "key bert.pooler.dense.weight is missing"),
        (lambda w: w.update({"bert.pooler.dense.weight": torch.zeros(2, 2)}), "has shape (2, 2)"),
        (lambda w: w["bert.pooler.dense.weight"].fill_(torch.nan), "holds NaN or infinite values"),
    ],
)
def test_wrong_weights_are_refused_by_file_and_key(source, tmp_path, change, message):
    model, path = load_model(SequenceClassifier, source, load_config(source), 1), tmp_path / "w.pt"
    weights = {name: value.clone() for name, value in masks.snapshot(model).items()}
    change(weights)
    torch.save(weights, path)
    with pytest.raises(UserError, match=re.escape(str(path)) + ".*" + re.escape(message)):
        load_initial_weights(model, str(path), "pre")


# ---- compiled layers


def counting(graphs):
    """A backend of torch.compile that runs the graph unchanged and counts it."""

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    return backend


def train_rounds(trainer, rows):
    """Two rounds of two steps on rows of several lengths, with a prune and a rewind after each."""
    theta, found = masks.snapshot(trainer.model), []
    for round_ in range(2):
        seed_round(5, round_, 0)
        trainer.model.train()
        for step in range(2):
            loss, norm = trainer.step([rows[round_ * 2 + step]], 1e-2, (5, round_, step))
            found.append({"loss": loss.clone(), "norm": norm.clone(), **gradients(trainer.model)})
        masks.prune_to(trainer.model, 0.5 + round_ / 10)
        masks.rewind(trainer.model, theta)
        trainer.reset_optimizer()
    return found


def runtime(precision):
    return type(RUNTIME)(RUNTIME.device, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_layers_compute_the_same_with_dropout_and_share_one_graph(folder, precision):
    torch.compiler.reset()
    task, graphs, found = load_task(folder, "MRPC"), [], []
    rows = [np.arange(6), np.arange(6, 20), np.arange(20, 23), np.arange(23, 40)]
    for compiled in (False, True):
        model = masked_model(folder, task)
        names = list(model.state_dict()), [name for name, _ in model.named_parameters()]
        if compiled:
            compile_layers(model, counting(graphs))
        trainer = Trainer(model, task, training(learning_rate=1e-2), runtime(precision))
        found.append(train_rounds(trainer, rows))
        assert (list(model.state_dict()), [n for n, _ in model.named_parameters()]) == names
    assert model.bert.encoder.layer[0].training
    assert len(graphs) == 1  # three layers, four batches, masks that change
    for plain, same in zip(*found, strict=True):
        assert plain.keys() == same.keys()
        assert all(torch.equal(same[key], value) for key, value in plain.items())


def test_full_and_packed_batches_share_the_compiled_graphs_of_their_kind(folder):
    torch.compiler.reset()
    task, graphs = load_task(folder, "MRPC"), []
    model = masked_model(folder, task)
    compile_layers(model, counting(graphs))
    lengths = task.train.rows.lengths()
    full = np.flatnonzero(lengths == np.bincount(lengths).argmax())
    assert len(full) >= 4
    counts = []
    for rows in (np.arange(6), np.arange(6, 20), full[:3], full[:2], full[:4]):
        task.loss(model, task.train_batch(rows, 0, RUNTIME)).backward()
        counts.append(len(graphs))
    assert counts == [1, 1, 2, 2, 2]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_layers_return_hidden_states_and_no_weights(folder, precision):
    torch.compiler.reset()
    task, graphs = load_task(folder, "MRPC"), []
    model = masked_model(folder, task)
    compile_layers(model, counting(graphs))
    trainer = Trainer(model, task, training(learning_rate=1e-2), runtime(precision))
    trainer.step([np.arange(6)], 1e-2, (1, 0, 0))
    outputs = graphs[0].graph.output_node().args[0]
    shapes = [node.meta["example_value"].shape for node in outputs]
    assert len(shapes) == 1 and shapes[0][0] == 1 and shapes[0][-1] == model.config.hidden_size
    kinds = {value.dtype for name, value in model.named_buffers() if name.endswith("_mask")}
    assert kinds == {torch.bool}


def test_a_model_with_compiled_layers_has_the_same_checkpoints_and_masks(folder):
    task = load_task(folder, "MRPC")
    plain, compiled = masked_model(folder, task), masked_model(folder, task)
    compile_layers(compiled, counting([]))
    assert masks.state_digest(compiled) == masks.state_digest(plain)
    found = masks.current(compiled)
    assert masks.digest(found) == masks.digest(masks.current(plain))
    masks.prune_to(compiled, 0.6)
    masks.prune_to(plain, 0.6)
    assert masks.sparsity(found) == pytest.approx(0.3, abs=1e-4)  # a copy does not change
    fresh = masked_model(folder, task)
    compile_layers(fresh, counting([]))
    for state in (plain.state_dict(), compiled.state_dict()):
        masks.prune_to(fresh, 0.9)
        fresh.load_state_dict(state)
        assert masks.digest(masks.current(fresh)) == masks.digest(masks.current(plain))
    dense = [masks.dense_state(model) for model in (plain, compiled)]
    assert dense[0].keys() == dense[1].keys()
    assert all(torch.equal(dense[1][name], value) for name, value in dense[0].items())


@pytest.mark.parametrize(
    ("device", "there", "message"),
    [
        ("cpu", ["clang++"], None),
        ("cpu", ["gcc"], "a C++ compiler such as g++"),
        ("cuda", ["gcc"], None),
        ("cuda", ["g++"], "a C compiler such as gcc"),
    ],
)
def test_compile_needs_the_compiler_of_the_device(monkeypatch, device, there, message):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: name if name in there else None)
    include = {"include": str(Path(__file__).parent / "include")}
    monkeypatch.setattr("sysconfig.get_paths", lambda: include)
    expected = message or "Python.h, of Python's development files; install it"
    with pytest.raises(UserError, match=re.escape(expected)):
        bert.check_compiler(torch.device(device))
    monkeypatch.setattr("pathlib.Path.exists", lambda path: path.name == "Python.h")
    if message is None:
        bert.check_compiler(torch.device(device))
