"""GLUE files are read and tokenized as in the released code, or refused by name."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from utils.data import glue
from utils.data.glue import GlueExamples, features, find_spec, load, longest_first, read_examples
from utils.errors import UserError

FOLDERS = {"cola": "CoLA", "mrpc": "MRPC", "sts-b": "STS-B"}
SST = "sentence\tlabel\n"
STS = "index\tgenre\tsentence1\tsentence2\tscore\n"
WORDS = ["[UNK]", "[CLS]", "[SEP]", "a", "b", "c"]


@pytest.fixture(scope="module")
def golden_tokenizer(golden):
    from transformers import BertTokenizer

    return BertTokenizer.from_pretrained(golden / "assets" / "model")


@pytest.fixture(scope="module")
def reference(golden):
    return json.loads((golden / "glue_features.json").read_text())


def word_tokenizer(words=WORDS):
    """Return a tokenizer of whole words, with the interface that `features` uses."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    engine = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, "[UNK]")
    )
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return SimpleNamespace(backend_tokenizer=engine, cls_token_id=1, sep_token_id=2)


def examples_of(text_a, text_b=None):
    return GlueExamples(text_a, text_b, np.zeros(len(text_a), np.int64))


def written(folder, content, name="train.tsv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows_of(rows):
    return [
        (ids.tolist(), types.tolist()) for ids, types in (rows[row] for row in range(len(rows)))
    ]


def unpadded(feature):
    """Return (ids, types) of a golden feature without its padding, which must be zeros."""
    length = sum(feature["attention_mask"])
    assert not any(feature["input_ids"][length:]) and not any(feature["token_type_ids"][length:])
    return feature["input_ids"][:length], feature["token_type_ids"][:length]


# ---- parity with the released code


@pytest.mark.parametrize(
    "name", ["cola/train", "cola/dev", "mrpc/train", "mrpc/dev", "sts-b/train", "sts-b/dev"]
)
def test_files_give_the_released_examples_and_features(golden, golden_tokenizer, reference, name):
    # without exceptions: the slow tokenizer of 2020 and the fast one agree on all of these rows
    expected = reference[name]
    task, split = name.split("/")
    spec = find_spec(task)
    examples = read_examples(spec, golden / "assets" / "glue" / FOLDERS[task] / spec.files[split])
    assert list(spec.labels or [None]) == expected["labels"]
    assert len(examples.text_a) == len(examples.labels) == expected["n_examples"]
    first = expected["examples"]
    assert examples.text_a[: len(first)] == [row["text_a"] for row in first]
    assert [examples.text_b and examples.text_b[at] for at in range(len(first))] == [
        row["text_b"] for row in first
    ]
    assert len(expected["features"]) == 4
    for length, wanted in expected["features"].items():
        rows = features(examples, golden_tokenizer, int(length))
        assert rows_of(rows)[: len(wanted)] == [unpadded(row) for row in wanted]
        assert examples.labels[: len(wanted)] == pytest.approx(
            [row["label"] for row in wanted], abs=1e-6
        )
        assert rows.lengths().max() <= int(length)


def test_edge_cases_give_the_released_features(golden_tokenizer, reference):
    edge = reference["edge/mrpc"]
    for length, wanted in edge["features"].items():
        for row, expected in zip(edge["examples"], wanted, strict=True):
            text_b = None if row["text_b"] is None else [row["text_b"]]
            examples = examples_of([row["text_a"]], text_b)
            assert rows_of(features(examples, golden_tokenizer, int(length))) == [
                unpadded(expected)
            ]


@pytest.fixture(scope="module")
def both_tokenizers(real_data):
    """Return two functions from text to WordPieces: by `features`, and by the slow 2020 code."""
    from transformers import BertTokenizer
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    vocabulary = str(real_data / "bert-uncased-vocab" / "vocab.txt")
    fast, slow = (
        BertTokenizer(vocab=vocabulary),
        BertTokenizerLegacy(vocabulary, do_lower_case=True),
    )

    def by_features(text):
        ids, _ = features(examples_of([text]), fast, 512)[0]
        return fast.convert_ids_to_tokens(ids.tolist())[1:-1]

    return by_features, slow.tokenize


@pytest.mark.parametrize(
    "text",
    [
        "\x00a\x07b",
        "a\x0bb\x0cc",
        "a\x85b\u2028c\u3000d",
        "a\u200bb\u00adc\ufeffd",
        "\ufffd",
        "été É",
        "e\u0301",
        "İs",
        "tanason[SEP]mozo [sep] [MASK]",
        "[CLS] [UNK][PAD]",
        "日本x",
        'don\'t "x"',
        "x" * 100,
        "x" * 101,
        "  ",
        "ẞß ﬁ",
    ],
)
def test_odd_text_is_tokenized_as_the_slow_tokenizer_did(both_tokenizers, text):
    fast, slow = both_tokenizers
    assert fast(text) == slow(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ΝΑΣ", "a final capital sigma: Python lower-cases it to the final form, Rust does not"),
        (
            "a\u0378b",
            "an unassigned code point: the slow code drops it, the fast one makes the word unknown",
        ),
    ],
)
def test_known_differences_from_the_slow_tokenizer(both_tokenizers, text, reason):
    fast, slow = both_tokenizers
    assert fast(text) != slow(text), reason


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 60))
def test_pairs_lose_one_token_at_a_time_from_the_longer(a, b, room):
    kept = longest_first(a, b, room)
    while a + b > room:
        a, b = (a - 1, b) if a > b else (a, b - 1)
    assert kept == (a, b)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=9),
    st.integers(4, 20),
)
def test_rows_are_assembled_in_order(pairs, length):
    examples = examples_of(["a " * a for a, _ in pairs], ["b " * b for _, b in pairs])
    expected = []
    for pair in pairs:
        a, b = pair
        while a + b > length - 3:
            a, b = (a - 1, b) if a > b else (a, b - 1)
        expected.append(([1] + [3] * a + [2] + [4] * b + [2], [0] * (a + 2) + [1] * (b + 1)))
    assert rows_of(features(examples, word_tokenizer(), length)) == expected


def test_many_texts_are_tokenized_in_chunks(monkeypatch):
    monkeypatch.setattr(glue, "CHUNK", 2)
    rows = features(examples_of(["a", "b c", "", "c", "a b"]), word_tokenizer(), 9)
    expected = [[1, 3, 2], [1, 4, 5, 2], [1, 2], [1, 5, 2], [1, 3, 4, 2]]
    assert [ids for ids, _ in rows_of(rows)] == expected
    pairs = features(examples_of(["a", "b", "c"], ["c", "", "b"]), word_tokenizer(), 9)
    assert rows_of(pairs) == [
        ([1, 3, 2, 5, 2], [0, 0, 0, 1, 1]),
        ([1, 4, 2, 2], [0, 0, 0, 1]),
        ([1, 5, 2, 4, 2], [0, 0, 0, 1, 1]),
    ]
    assert (pairs.ids.dtype, pairs.types.dtype, pairs.starts.dtype) == (
        np.int32,
        np.uint8,
        np.int64,
    )


@pytest.mark.parametrize(("text_b", "length"), [(None, 2), (["b"], 3)])
def test_a_length_without_room_for_text_is_refused(text_b, length):
    with pytest.raises(UserError, match=f"--max_seq_length {length}"):
        features(examples_of(["a"], text_b), word_tokenizer(), length)


# ---- tasks


@pytest.mark.parametrize(
    ("given_name", "name"),
    [
        ("STS-B", "sts-b"),
        ("sts-b", "sts-b"),
        ("SST-2", "sst-2"),
        ("MNLI", "mnli"),
        ("MNLI-MM", "mnli-mm"),
        ("CoLA", "cola"),
        ("sst2", "sst-2"),
        ("stsb", "sts-b"),
        ("mnli_mm", "mnli-mm"),
    ],
)
def test_tasks_are_found_in_any_spelling(given_name, name):
    assert find_spec(given_name).name == name


@pytest.mark.parametrize(
    ("typo", "near"), [("MNIL", "mnli"), ("sts", "sts-b"), ("SST3", "sst-2"), ("COLLA", "cola")]
)
def test_an_unknown_task_suggests_the_nearest(typo, near):
    with pytest.raises(UserError, match=f"--task_name {typo}: .*did you mean {near}\\?"):
        find_spec(typo)


def test_a_name_unlike_any_task_lists_all():
    with pytest.raises(UserError, match=r"one of .*cola.*wnli") as error:
        find_spec("")
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "folder", "split", "count"),
    [
        ("CoLA", "CoLA", "train", 320),
        ("MNLI", "MNLI", "train", 320),
        ("MNLI", "MNLI", "dev", 90),
        ("MNLI", "MNLI", "dev_mismatched", 90),
        ("MNLI-mm", "MNLI", "dev_mismatched", 90),
        ("MRPC", "MRPC", "dev", 90),
        ("SST-2", "SST-2", "train", 320),
        ("STS-B", "STS-B", "dev", 90),
        ("QNLI", "QNLI", "train", 320),
        ("RTE", "RTE", "dev", 90),
        ("WNLI", "WNLI", "train", 320),
    ],
)
def test_every_task_reads_its_original_format(golden, task, folder, split, count):
    spec = find_spec(task)
    examples = read_examples(spec, golden / "assets" / "glue" / folder / spec.files[split])
    assert len(examples.text_a) == len(examples.labels) == count
    assert (examples.text_b is None) == (task in ("CoLA", "SST-2"))
    if spec.labels:
        assert set(examples.labels) == set(range(len(spec.labels)))


def test_mnli_mismatched_rows_are_those_of_the_mismatched_file(golden):
    folder = golden / "assets" / "glue" / "MNLI"
    matched, mismatched = find_spec("mnli"), find_spec("mnli-mm")
    assert matched.files == {
        "train": "train.tsv",
        "dev": "dev_matched.tsv",
        "dev_mismatched": "dev_mismatched.tsv",
    }
    assert mismatched.files == {"train": "train.tsv", "dev_mismatched": "dev_mismatched.tsv"}
    first = read_examples(mismatched, folder / mismatched.files["dev_mismatched"])
    assert first.text_a[0].startswith("Menlyé tanason") and first.labels[0] == 1  # entailment


def test_torn_qqp_rows_are_left_out_and_named(golden, golden_tokenizer, capsys):
    spec = find_spec("QQP")
    folder = golden / "assets" / "glue" / "QQP"  # its last row is torn, like some of the real file
    loaded = load(spec, folder, "train", golden_tokenizer, 48)
    assert len(loaded.rows) == len(loaded.labels) == 320
    warning = "rows with too few columns are left out, as the released code does: 322"
    assert capsys.readouterr().err == f"warning: {folder / 'train.tsv'}: {warning}\n"


QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"


def test_rows_after_a_torn_one_keep_their_numbers(tmp_path, capsys):
    torn = QQP + "0\t1\t2\ta\n" + "b\t1\n" + "1\t3\t4\ta\tb\t1\n"
    examples = read_examples(find_spec("QQP"), written(tmp_path, torn))
    assert examples.text_a == ["a"] and ": 2, 3\n" in capsys.readouterr().err
    with pytest.raises(UserError, match="row 5: is_duplicate is '2'"):
        read_examples(find_spec("QQP"), written(tmp_path, torn + "2\t5\t6\ta\tb\t2\n"))
    with pytest.raises(UserError, match="row 5: 7 columns instead of 6"):
        read_examples(find_spec("QQP"), written(tmp_path, torn + "2\t5\t6\ta\tb\tc\t1\n"))
    with pytest.raises(UserError, match="no rows below the header"):
        read_examples(find_spec("QQP"), written(tmp_path, QQP + "0\t1\t2\ta\n"))


def test_a_torn_row_of_another_task_is_an_error(golden, tmp_path):
    torn = (
        golden / "assets" / "glue" / "RTE" / "train.tsv"
    ).read_bytes() + b"320\tone sentence alone\n"
    with pytest.raises(UserError, match=r"row 322: 2 columns instead of 4; fix or delete it"):
        read_examples(find_spec("RTE"), written(tmp_path, torn))


@pytest.mark.parametrize(
    ("folder", "train", "dev"),
    [
        ("CoLA", 8551, 1043),
        ("MRPC", 3667, 408),
        ("RTE", 2490, 277),
        ("SST-2", 67349, 872),
        ("STS-B", 5749, 1500),
        ("WNLI", 635, 71),
    ],
)
def test_real_files_are_read_completely(real_data, folder, train, dev):
    spec = find_spec(folder)
    for split, count in (("train", train), ("dev", dev)):
        examples = read_examples(spec, real_data / "glue_data" / folder / spec.files[split])
        assert len(examples.text_a) == len(examples.labels) == count
        assert not any("\n" in text or "\t" in text for text in examples.text_a)


# ---- file formats


@pytest.mark.parametrize(
    "content",
    [
        "sentence\tlabel\na b\t1\nb\t0\n",
        "sentence\tlabel\na b\t1\nb\t0",
        "sentence\tlabel\r\na b\t1\r\nb\t0\r\n",
        "\ufeffsentence\tlabel\na b\t1\nb\t0\n\n\r\n  \n",
        "id\tlabel\tsentence\n7\t1\ta b\n8\t0\tb\n",
    ],
    ids=[
        "plain",
        "no last newline",
        "CRLF",
        "byte-order mark and blank last lines",
        "columns in another order",
    ],
)
def test_line_ends_marks_and_column_order_do_not_matter(tmp_path, content):
    examples = read_examples(find_spec("SST-2"), written(tmp_path, content))
    assert (examples.text_a, examples.text_b, examples.labels.tolist()) == (
        ["a b", "b"],
        None,
        [1, 0],
    )
    assert examples.labels.dtype == np.int64


@pytest.mark.parametrize(
    "odd",
    ['"', '"a', 'a "b" \'c', "\x0b", "\x0c\x1c\x1d\x1e", "\x85", "\u2028\u2029", "a\rb", "\x00"],
)
def test_quotes_and_exotic_separators_are_plain_characters(tmp_path, odd):
    text = f"sentence\tlabel\n{odd}\t1\nx{odd}y\t0\n"
    assert read_examples(find_spec("SST-2"), written(tmp_path, text)).text_a == [odd, f"x{odd}y"]


def test_cola_has_no_header_and_empty_marks(tmp_path):
    path = written(tmp_path, "gj04\t1\t\tA b.\nks08\t0\t*\tb A.\n")
    examples = read_examples(find_spec("CoLA"), path)
    assert (examples.text_a, examples.labels.tolist()) == (["A b.", "b A."], [1, 0])


def test_stsb_labels_are_scores(tmp_path):
    path = written(tmp_path, STS + "0\tx\ta\tb\t5\n1\tx\tb\ta\t2.400\n")
    examples = read_examples(find_spec("STS-B"), path)
    assert (examples.text_a, examples.text_b) == (["a", "b"], ["b", "a"])
    assert examples.labels.dtype == np.float32 and examples.labels.tolist() == pytest.approx(
        [5, 2.4]
    )


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("SST-2", SST + "a\t1\nb\n", r"row 3: 1 columns instead of 2; fix or delete it"),
        ("SST-2", SST + "a\t1\n\nb\t1\n", r"row 3: 1 columns instead of 2"),
        (
            "SST-2",
            SST + "a\tb\t1\nb\t1\nc\n",
            r"row 2: 3 columns instead of 2 \(2 such rows: 2, 4\); fix",
        ),
        ("SST-2", SST + "a\t1\nb\t2\n", r"row 3: label is '2', must be one of 0, 1"),
        ("SST-2", SST + "a\t\n", r"row 2: label is '', must be one of 0, 1"),
        ("SST-2", SST, r"no rows below the header"),
        ("SST-2", SST + "\n\n", r"no rows below the header"),
        ("SST-2", "", r"the file is empty"),
        ("SST-2", "\ufeff\n\r\n", r"the file is empty"),
        (
            "SST-2",
            "a b\t1\n",
            r"row 1: the header has no column 'label' \(sst-2 needs it\), only 'a b', '1'",
        ),
        (
            "RTE",
            "index\tsentence1\tlabel\n",
            r"row 1: the header has no column 'sentence2' \(rte needs it\)",
        ),
        (
            "RTE",
            "sentence1\tsentence2\tlabel\na\tb\tEntailment\n",
            r"row 2: .*one of entailment, not_entailment",
        ),
        ("CoLA", "gj04\t1\t\tA b.\ngj04\t1\tA b.\n", r"row 2: 3 columns instead of 4"),
        ("CoLA", "gj04\t1\t\tA b.\ngj04\t*\t\tA b.\n", r"row 2: label is '\*'"),
        (
            "STS-B",
            STS + "0\tx\ta\tb\t5\n0\tx\ta\tb\thigh\n",
            r"row 3: score is 'high', must be a finite number",
        ),
        ("STS-B", STS + "0\tx\ta\tb\tnan\n", r"row 2: score is 'nan', must be a finite number"),
        ("STS-B", STS + "0\tx\ta\tb\t-inf\n", r"row 2: score is '-inf'"),
        ("STS-B", STS + "0\tx\ta\tb\t1e39\n", r"row 2: score is '1e39'"),
        ("STS-B", STS + "0\tx\ta\tb\t\n", r"row 2: score is ''"),
        (
            "SST-2",
            SST.encode() + b"a\t1\ncaf\xe9\t0\n",
            r"row 3: not UTF-8 \(byte 0xe9\); convert it",
        ),
        ("SST-2", "sentence\tlabel\n".encode("utf-16"), r"row 1: not UTF-8 \(byte 0xff\)"),
    ],
)
def test_a_malformed_file_is_named_with_its_row(tmp_path, task, content, message):
    path = written(tmp_path, content)
    with pytest.raises(UserError, match=message) as error:
        read_examples(find_spec(task), path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["SST-2", "CoLA", "STS-B", "RTE"]),
    st.booleans(),
    st.one_of(
        st.binary(max_size=60), st.text('ab01\t\n\r"\x85.-einf ', max_size=60).map(str.encode)
    ),
)
@example("STS-B", True, b"a\tb\t1_0\n")
def test_any_bytes_are_rows_or_an_error_for_the_user(tmp_path_factory, task, headed, data):
    spec = find_spec(task)
    header = "\t".join(filter(None, (spec.text_a, spec.text_b, spec.label))) + "\n"
    path = written(
        tmp_path_factory.getbasetemp(),
        (header.encode() if headed and not spec.header else b"") + data,
    )
    try:
        examples = read_examples(spec, path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    assert len(examples.text_a) == len(examples.labels) > 0 and np.isfinite(examples.labels).all()
    assert spec.text_b is None or len(examples.text_b) == len(examples.text_a)


# ---- loading


@pytest.fixture
def folder(tmp_path):
    written(tmp_path, SST + "a b\t1\nb c a\t0\n")
    return tmp_path


def loaded(folder, tokenizer=None, max_length=9, split="train"):
    found = load(find_spec("SST-2"), folder, split, tokenizer or word_tokenizer(), max_length)
    return rows_of(found.rows), found.labels.tolist()


EXPECTED = ([([1, 3, 4, 2], [0] * 4), ([1, 4, 5, 3, 2], [0] * 5)], [1, 0])


def test_loading_writes_nothing(folder, capsys):
    assert loaded(folder) == EXPECTED
    assert [path.name for path in folder.iterdir()] == ["train.tsv"]
    assert capsys.readouterr() == ("", "")


def test_every_load_reads_the_file_tokenizer_and_length_given(folder):
    assert loaded(folder) == EXPECTED
    swapped = word_tokenizer(["[UNK]", "[CLS]", "[SEP]", "b", "a", "c"])
    assert loaded(folder, swapped)[0][0] == ([1, 4, 3, 2], [0] * 4)
    assert loaded(folder, max_length=3)[0] == [([1, 3, 2], [0] * 3), ([1, 4, 2], [0] * 3)]
    written(folder, SST + "c\t1\n", "dev.tsv")
    assert loaded(folder, split="dev") == ([([1, 5, 2], [0] * 3)], [1])
    written(folder, SST + "c b\t1\n")
    assert loaded(folder) == ([([1, 5, 4, 2], [0] * 4)], [1])


def test_missing_folders_and_files_name_what_is_expected(folder, tmp_path):
    expected = "--data_dir must hold train.tsv and dev.tsv of sst-2"
    with pytest.raises(UserError, match=f"nowhere/train.tsv: no such file; {expected}"):
        loaded(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"train\.tsv/train\.tsv: no such file"):
        loaded(folder / "train.tsv")
    with pytest.raises(
        UserError, match=r"dev_matched\.tsv: no such file; .*_mismatched\.tsv of mnli"
    ):
        load(find_spec("MNLI"), folder, "dev", word_tokenizer(), 9)
