"""What config.json says: models that cannot run are refused, classes are matched by name."""

import itertools
import json
import re

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertForSequenceClassification

from utils import files
from utils.config import GlueConfig, ModelConfig, OutputConfig, TrainingConfig
from utils.data.glue import SPECS
from utils.errors import UserError
from utils.modeling.bert import SequenceClassifier, load_config, load_model, reload
from utils.modeling.configuration import order_of_classes
from utils.modeling.saving import save_pretrained
from utils.tasks.glue import GlueTask
from utils.tasks.squad import SquadTask

MNLI = ("contradiction", "entailment", "neutral")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configuration")
    tiny.bert(folder / "bert")
    for task in ("MNLI", "SST-2", "STS-B", "RTE"):
        tiny.glue(folder / task, task, train=4, dev=4)
    return folder


def load_task(folder, name, model):
    data = GlueConfig(name, str(folder / name), 32, True)
    training = TrainingConfig(do_train=True, do_eval=True)
    model = ModelConfig(model_name_or_path=str(model))
    return GlueTask.load(data, model, training, OutputConfig(output_dir=str(folder / "out")))


def save_head(folder, out, names, label2id=None, **changes):
    """A folder as another program saves it: row k of the head holds k, and means names[k]."""
    config = load_config(str(folder / "bert"), num_labels=len(names))
    model = load_model(SequenceClassifier, str(folder / "bert"), config, 1)
    with torch.no_grad():
        for k in range(len(names)):
            model.classifier.weight[k], model.classifier.bias[k] = k, k
    task = load_task(folder, "MNLI", folder / "bert")
    save_pretrained(model, task.tokenizer, out)
    content = json.loads((out / "config.json").read_text())
    content["id2label"] = dict(enumerate(names))
    content["label2id"] = label2id or {name: k for k, name in enumerate(names)}
    (out / "config.json").write_text(json.dumps(content | changes))
    return out


# ---- classes


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_rows_of_a_head_follow_the_names_of_their_classes(folder, tmp_path, order):
    names = [MNLI[k].upper() for k in order]
    source = save_head(folder, tmp_path / "head", names)
    task = load_task(folder, "MNLI", source)
    model = load_model(task.model_class, str(source), task.bert_config, 1)
    for row, name in enumerate(MNLI):
        assert names[int(model.classifier.bias[row])].lower() == name
        assert (model.classifier.weight[row] == model.classifier.bias[row]).all()
    save_pretrained(model, task.tokenizer, tmp_path / "ours")
    again = load_model(task.model_class, str(tmp_path / "ours"), task.bert_config, 1)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    model.classifier.bias.data.zero_()
    reload(model, str(source))  # --eval_all_checkpoints
    assert torch.equal(again.classifier.bias, model.classifier.bias)


@given(st.permutations(["a b", "Not_a", "c"]), st.sampled_from(["both", "id2label", "label2id"]))
def test_names_match_without_case_and_in_either_dictionary(names, known):
    content = {
        "id2label": {str(k): name for k, name in enumerate(names)},
        "label2id": {name: k for k, name in enumerate(names)},
    }
    generic = [f"LABEL_{k}" for k in range(3)]
    if known == "id2label":
        content["label2id"] = {name: k for k, name in enumerate(generic)}
    if known == "label2id":
        content["id2label"] = {str(k): name for k, name in enumerate(generic)}
    rows = order_of_classes("folder", ["A_B", "not-A", "C"], content)
    assert [names[row] for row in rows] == ["a b", "Not_a", "c"]


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (["LABEL_0", "LABEL_1"], False),
        (["LABEL_1", "LABEL_0"], False),
        (["1", "0"], False),
        (["equivalent", "not_equivalent"], True),
        (["entailment", "entailment"], True),
    ],
)
def test_other_names_keep_their_order(names, warned, capsys):
    content = {"id2label": dict(enumerate(names)), "label2id": {name: 0 for name in names}}
    assert order_of_classes("folder", ["entailment", "not_entailment"], content) == [0, 1]
    error = capsys.readouterr().err
    assert error.startswith("warning: folder: the classes of its head are") is warned


@pytest.mark.parametrize("task", [spec for spec in SPECS.values() if spec.labels == ("0", "1")])
@pytest.mark.parametrize("numbers", [["0", "1"], ["1", "0"], [1, 0], ["1", "1"], ["1", "2"]])
def test_a_head_may_name_its_classes_by_the_labels_in_the_data(task, numbers, capsys):
    content = {"id2label": {str(k): number for k, number in enumerate(numbers)}}
    rows = order_of_classes("folder", list(task.classes), content)
    assert rows == ([1, 0] if [*map(str, numbers)] == ["1", "0"] else [0, 1])
    assert ("task's order" in capsys.readouterr().err) is (rows == [1, 0])  # a swap is not silent


@pytest.mark.parametrize("subfolder", ["", "checkpoint-4"])
@pytest.mark.parametrize(
    ("owner", "reordered"),
    [
        (None, True),  # another program's
        ({"arguments": {}}, False),  # that of an earlier version, which kept foreign names
        ({"arguments": {}, "directory": "/home"}, True),
        ({"directory": ""}, True),  # a run.json of another program
    ],
)
def test_models_of_an_earlier_version_have_the_order_of_their_task(
    folder, tmp_path, monkeypatch, subfolder, owner, reordered
):
    source = save_head(folder, tmp_path / "out" / subfolder, MNLI[::-1])
    if owner is not None:
        files.write_json(tmp_path / "out" / "run.json", owner)
    monkeypatch.chdir(source)
    for name in (str(source), "."):
        task = load_task(folder, "MNLI", name)
        model = load_model(task.model_class, name, task.bert_config, 1)
        assert model.classifier.bias.tolist() == ([2, 1, 0] if reordered else [0, 1, 2])


def test_saved_models_carry_the_classes_of_their_task(folder, tmp_path):
    expected = {
        "MNLI": (MNLI, "single_label_classification"),
        "SST-2": (("negative", "positive"), "single_label_classification"),
        "STS-B": (("LABEL_0",), "regression"),
    }
    foreign = save_head(folder, tmp_path / "foreign", "abcd", problem_type="multi_label")
    for name, (classes, problem) in expected.items():
        task = load_task(folder, name, foreign)
        model = load_model(task.model_class, str(foreign), task.bert_config, 1)
        assert model.untrained == ("classifier.bias", "classifier.weight")  # four classes
        save_pretrained(model, task.tokenizer, tmp_path / name)
        other = BertForSequenceClassification.from_pretrained(tmp_path / name)
        assert other.config.id2label == dict(enumerate(classes))
        assert other.config.label2id == {label: k for k, label in enumerate(classes)}
        assert (other.num_labels, other.config.problem_type) == (len(classes), problem)
        assert torch.equal(other.classifier.weight, model.classifier.weight)


def test_a_question_answerer_has_two_outputs_whatever_the_head_of_its_model(folder, tmp_path):
    source = save_head(folder, tmp_path / "mnli", MNLI)
    paths = tiny.squad(tmp_path / "squad")
    from utils.config import SquadConfig

    data = SquadConfig(
        train_file=str(paths / "train-v1.1.json"),
        max_seq_length=48,
        doc_stride=16,
        max_query_length=12,
        threads=1,
    )
    model = ModelConfig(model_name_or_path=str(source))
    training, output = TrainingConfig(do_train=True), OutputConfig(output_dir=str(tmp_path))
    task = SquadTask.load(data, model, training, output)
    answerer = load_model(task.model_class, str(source), task.bert_config, 1)
    assert answerer.qa_outputs.weight.shape == (2, 32)
    assert list(task.bert_config.id2label.values()) == ["LABEL_0", "LABEL_1"]


# ---- values


def change(source, target, **changes):
    content = json.loads((source / "config.json").read_text())
    target.mkdir()
    (target / "config.json").write_text(json.dumps(content | changes))
    return str(target)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in ("hidden_size", "vocab_size") for value in (0, -32, "32", None)),
        *(("num_hidden_layers", value) for value in (0, 10**9, 1.5)),
        *(("num_attention_heads", value) for value in (0, 5)),
        ("max_position_embeddings", -1),
        ("type_vocab_size", 0),
        *(("pad_token_id", value) for value in (-1, 10**6)),
        *(("hidden_dropout_prob", value) for value in (-0.1, 1, float("nan"))),
        ("classifier_dropout", 2.0),
        *(("layer_norm_eps", value) for value in (-1.0, float("inf"))),
        ("hidden_act", "unknown"),
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("chunk_size_feed_forward", 4),
        ("position_embedding_type", "relative_key"),
    ],
)
def test_configurations_that_cannot_run_are_refused_by_key(folder, tmp_path, key, value):
    source = change(folder / "bert", tmp_path / "bert", **{key: value})
    named = "hidden_size" if key == "num_attention_heads" and value else key
    with pytest.raises(UserError, match=f"{re.escape(source)}: .*{named}"):
        load_config(source)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("return_dict", False), ("torchscript", True), ("use_cache", False)),
        *(("_attn_implementation", "eager"), ("dtype", "float16"), ("pad_token_id", None)),
    ],
)
def test_values_without_effect_on_packed_sequences_are_accepted(folder, tmp_path, key, value):
    config = load_config(change(folder / "bert", tmp_path / "bert", **{key: value}))
    assert config._attn_implementation == "packed_rows"
    model = load_model(SequenceClassifier, str(folder / "bert"), config, 1)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("init", ["pre", "rand"])
def test_a_model_that_cannot_be_built_is_refused_in_one_line(folder, init):
    class TooLarge(SequenceClassifier):
        def __init__(self, config):
            raise RuntimeError("not enough\nmemory")

    source = str(folder / "bert")
    with pytest.raises(UserError, match=f"{re.escape(source)}: .*not enough memory"):
        load_model(TooLarge, source, load_config(source), 1, init)


def test_pairs_need_two_token_types_and_single_texts_one(folder, tmp_path):
    tiny.bert(tmp_path / "one", type_vocab_size=1)
    assert load_task(folder, "SST-2", tmp_path / "one").train_rows == 4
    with pytest.raises(UserError, match="type_vocab_size 1: this task has pairs"):
        load_task(folder, "RTE", tmp_path / "one")
