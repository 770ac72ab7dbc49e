"""SQuAD answers as the released code finds them, and scores by the official rules."""

import gzip
import json

import numpy as np
import pytest
from transformers import BertTokenizer

from utils.config import SquadConfig
from utils.data.squad import SquadExample, read_squad
from utils.data.squad_windows import make_windows
from utils.tasks.squad_answers import Answers, best_answers, normalize, squad_metrics

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
VOCAB = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *LETTERS,
    *("##" + c for c in LETTERS),
    *".,-()?",
    "one",
    "two",
]


@pytest.fixture(scope="module")
def tokenizer():
    """Lower-casing WordPieces: letters, digits, their continuations, punctuation, two words."""
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(VOCAB)})


def example(context, *golds, name="q1", text=""):
    answers = tuple((gold, context.find(gold)) for gold in golds)
    return SquadExample(name, text, context, answers)


def cut(examples, tokenizer, length=64, stride=16):
    config = SquadConfig(max_seq_length=length, doc_stride=stride, max_query_length=8)
    return make_windows(examples, tokenizer, config, training=False)


def answered(examples, found, start, end, **settings):
    """Answers, n-best lists and odds of "no answer"."""
    answers = best_answers(examples, found, start, end, SquadConfig(**settings))
    return answers.texts, answers.nbest, answers.null_odds


def scored(examples, predictions, null_odds=None, v2=False, threshold=0.0):
    config = SquadConfig(version_2_with_negative=v2, null_score_diff_threshold=threshold)
    return squad_metrics(examples, predictions, config, null_odds)


def logits(found, **peaks):
    """[windows, longest] start and end logits, 0 except start={(window, token): value}, end=..."""
    shape = (len(found), int(found.rows.lengths().max()))
    both = []
    for side in ("start", "end"):
        array = np.zeros(shape, dtype=np.float32)
        for at, value in peaks.get(side, {}).items():
            array[at] = value
        both.append(array)
    return both


def one_answer(context, first, last, tokenizer, **settings):
    """The best text when the logits ask for the context's tokens from `first` to `last`."""
    found = cut([example(context)], tokenizer)
    scores = logits(found, start={(0, 2 + first): 9}, end={(0, 2 + last): 9})
    return answered([example(context)], found, *scores, **settings)[0]["q1"]


# ---- parity with the released code


@pytest.fixture(scope="module")
def reference(golden):
    """Examples, windows, logits, predictions, n-best lists and scores of the released code."""
    folder = golden / "squad" / "eval_noisy_gold_64_24_16"
    examples = read_squad(golden / "assets" / "squad" / "dev-v1.1.json", v2=False)
    tokenizer = BertTokenizer.from_pretrained(golden / "assets" / "model")
    config = SquadConfig(max_seq_length=64, doc_stride=24, max_query_length=16)
    found = make_windows(examples, tokenizer, config, training=False)
    results = [
        json.loads((folder / f"{name}.json").read_text())
        for name in ("predictions", "nbest", "metrics")
    ]
    return examples, found, np.load(folder / "logits.npz"), *results


def test_golden_predictions_and_n_best(reference):
    examples, found, given, predictions, nbest, _ = reference
    ours, ours_nbest, odds = answered(examples, found, given["start"], given["end"])
    assert (
        ours == predictions
    )  # no exception: this text has no [UNK], no decomposed accents and no double spaces
    assert odds == {}
    for name, entries in nbest.items():
        assert [entry["text"] for entry in ours_nbest[name]] == [entry["text"] for entry in entries]
        for key in ("probability", "start_logit", "end_logit"):
            assert [e[key] for e in ours_nbest[name]] == pytest.approx(
                [e[key] for e in entries], abs=1e-6
            )


@pytest.mark.parametrize("v2", [False, True])
def test_golden_metrics(reference, v2):
    examples, _, _, predictions, _, metrics = reference
    assert scored(examples, predictions, v2=v2) == pytest.approx(metrics, abs=1e-6)


# The released code joins the WordPieces and searches the text in the words they come from; if it
# fails, the answer is these words whole. Offsets give another, better text in these cases only:
# (context, first token, last token, the released code's text, ours)
BETTER = {
    "spaces stay as they are (no score sees them)": (
        "one  two\na",
        0,
        2,
        "one two a",
        "one  two\na",
    ),
    "a span with [UNK] is never found": ("a (♥-one), b", 2, 4, "(♥-one),", "♥-one"),
    "a decomposed accent changes the length": ("(xe\u0301), b", 1, 2, "(xe\u0301),", "xe\u0301"),
    "a control character changes the length": ("(on\x00e), b", 1, 1, "(on\x00e),", "on\x00e"),
}


@pytest.mark.parametrize("context, first, last, released, ours", BETTER.values(), ids=BETTER.keys())
def test_text_by_offsets_is_better(tokenizer, context, first, last, released, ours):
    assert one_answer(context, first, last, tokenizer) == ours != released
    assert ours in context
    assert normalize(ours) == normalize(released)  # so the scores stay the same


@pytest.mark.parametrize(
    "context, first, last, text",
    [
        ("a (gogos), b", 2, 3, "go"),  # may end inside a word,
        ("a (gogos), b", 0, 3, "a (go"),
        (
            "a (gogos), b",
            3,
            4,
            "(gogos),",
        ),  # but a start inside one takes all of the words at both ends
        ("a (gogos) gogos,", 4, 9, "(gogos) gogos,"),
        ("gogos", 4, 4, "gogos"),
        ("é-X xÉs one", 2, 4, "X xÉ"),
        ("é-X xÉs one", 3, 5, "xÉs"),
        ("One\u202fTwo", 0, 1, "One\u202fTwo"),
    ],
)
def test_text_as_the_released_code_reads_it(tokenizer, context, first, last, text):
    assert one_answer(context, first, last, tokenizer) == text


# ---- which spans compete


def test_answers_are_no_longer_than_asked(tokenizer):
    assert one_answer("a b c d e", 1, 3, tokenizer, max_answer_length=3) == "b c d"
    assert one_answer("a b c d e", 1, 3, tokenizer, max_answer_length=2) != "b c d"


def test_only_context_tokens_and_never_backwards(tokenizer):
    given = [example("a b", text="one two")]
    found = cut(given, tokenizer)  # [CLS] one two [SEP] a b [SEP]
    start, end = logits(
        found,
        start={(0, 1): 9, (0, 3): 9, (0, 6): 9, (0, 5): 2, (0, 0): 9},
        end={(0, 2): 9, (0, 6): 9, (0, 4): 8, (0, 5): 1, (0, 0): 9},
    )
    texts = [entry["text"] for entry in answered(given, found, start, end)[1]["q1"]]
    assert texts == ["a", "b", "a b"]


def test_starts_only_in_their_best_window(tokenizer):
    given = [example(" ".join(LETTERS[:26]))]
    found = cut(
        given, tokenizer, length=15, stride=6
    )  # 12 tokens a window: 0-11, 6-17, 12-23, 18-25
    start, end = logits(
        found, start={(0, 2 + 11): 9}, end={(0, 2 + 11): 9}
    )  # token 11, best in the second window
    assert answered(given, found, start, end)[0]["q1"] != "l"
    start, end = logits(
        found, start={(1, 2 + 5): 9}, end={(1, 2 + 11): 9}
    )  # the end may be anywhere
    assert answered(given, found, start, end)[0]["q1"] == "l m n o p q r"


def test_windows_compete_and_their_scores_are_kept(tokenizer):
    given = [example("a b"), example(" ".join(LETTERS[:26]), name="q2")]
    found = cut(given, tokenizer, length=15, stride=6)
    assert found.example.tolist() == [0, 1, 1, 1, 1]
    start, end = logits(
        found, start={(1, 2): 5, (4, 9): 6, (0, 3): 1}, end={(1, 2): 5, (4, 9): 6, (0, 3): 1}
    )
    predictions, nbest, _ = answered(given, found, start, end)
    assert predictions == {"q1": "b", "q2": "z"}
    assert [(e["text"], e["start_logit"], e["end_logit"]) for e in nbest["q2"]][:2] == [
        ("z", 6, 6),
        ("a", 5, 5),
    ]


def test_n_best_is_of_different_texts_with_probabilities(tokenizer):
    given = [example("a b a")]
    found = cut(given, tokenizer)
    start, end = logits(found, start={(0, 2): 3, (0, 4): 2}, end={(0, 2): 3, (0, 4): 2})
    entries = answered(given, found, start, end)[1]["q1"]
    assert [entry["text"] for entry in entries] == ["a", "a b a", "a b", "b a", "b"]
    scores = np.array([6, 5, 3, 2, 0])
    assert [entry["probability"] for entry in entries] == pytest.approx(
        np.exp(scores) / np.exp(scores).sum()
    )
    two = answered(given, found, start, end, n_best_size=2)[1]["q1"]
    assert [entry["text"] for entry in two] == ["a", "a b a"]


def test_ties_go_to_the_earlier_token(tokenizer):
    given = [example("a b c d")]
    found = cut(given, tokenizer)
    start, end = logits(found)
    start[0, 2:6], end[0, 2:6] = 1, 1
    assert [e["text"] for e in answered(given, found, start, end, n_best_size=3)[1]["q1"]] == [
        "a",
        "a b",
        "a b c",
    ]


def test_rows_may_be_ragged_or_padded_but_padding_competes(tokenizer):
    given = [example("a b"), example("a b c d e", name="q2")]
    found = cut(given, tokenizer)
    rng = np.random.default_rng(0)
    ragged = [[rng.normal(size=n) for n in found.rows.lengths()] for _ in range(2)]
    padded = [np.full((2, 9), -np.inf) for _ in range(2)]
    for rows, array in zip(ragged, padded, strict=True):
        for window, row in enumerate(rows):
            array[window, : len(row)] = row
    expected = answered(given, found, *ragged)
    assert answered(given, found, *padded) == expected
    for array in padded:
        array[0, 6] = 99  # behind the last token of the first window
    assert answered(given, found, *padded) == expected
    assert answered(given, found, *padded, n_best_size=1)[0]["q1"] == "empty"
    with pytest.raises(IndexError):
        answered(given, found, ragged[0][:1], ragged[1][:1])


def test_question_without_windows_has_the_answer_empty(tokenizer):
    given = [example(""), example("a", name="q2")]
    found = cut(given, tokenizer)
    predictions, nbest, _ = answered(given, found, *logits(found))
    assert predictions == {"q1": "empty", "q2": "a"}
    assert nbest["q1"] == [
        {"text": "empty", "probability": 1.0, "start_logit": 0.0, "end_logit": 0.0}
    ]


def test_verbose_names_widened_and_missing_answers(tokenizer, capsys):
    one_answer("gogos", 4, 4, tokenizer)
    assert capsys.readouterr().err == ""
    one_answer("gogos", 4, 4, tokenizer, n_best_size=1, verbose_logging=True)
    assert (
        capsys.readouterr().err
        == "warning: question 'q1': a span that starts inside a word was widened to 'gogos'\n"
    )
    answered([example("")], cut([example("")], tokenizer), [], [], verbose_logging=True)
    assert capsys.readouterr().err == "warning: question 'q1': no valid answer span\n"


# ---- SQuAD 2.0


@pytest.mark.parametrize(
    "null, threshold, answer",
    [
        (3.0, 0.0, "b"),
        (3.0, -2.5, ""),
        (5.0, 0.0, ""),
        (5.0, 2.0, "b"),
        (5.0, 1.9, ""),
        (4.0, 0.0, "b"),
    ],
)
def test_no_answer_where_it_is_ahead_by_more_than_the_threshold(tokenizer, null, threshold, answer):
    given = [example("a b")]
    found = cut(given, tokenizer)
    start, end = logits(found, start={(0, 0): null, (0, 3): 4}, end={(0, 0): null, (0, 3): 4})
    predictions, nbest, odds = answered(
        given, found, start, end, version_2_with_negative=True, null_score_diff_threshold=threshold
    )
    assert odds == {"q1": 2 * null - 8}
    assert predictions == {"q1": answer}
    assert [entry["text"] for entry in nbest["q1"]][:2] == (["", "b"] if null > 4 else ["b", ""])


def test_null_score_is_that_of_the_window_surest_of_an_answer(tokenizer):
    given = [example(" ".join(LETTERS[:26]))]
    found = cut(given, tokenizer, length=15, stride=6)
    start, end = logits(
        found,
        start={(0, 0): 7, (1, 0): 1, (2, 0): 9, (3, 0): 9, (3, 9): 4},
        end={(0, 0): 7, (1, 0): 2, (2, 0): 9, (3, 0): 9, (3, 9): 4},
    )
    predictions, nbest, odds = answered(given, found, start, end, version_2_with_negative=True)
    assert (predictions["q1"], odds["q1"]) == ("z", 3 - 8)
    nulls = [
        (entry["start_logit"], entry["end_logit"]) for entry in nbest["q1"] if entry["text"] == ""
    ]
    assert nulls == [(1, 2)]


def test_no_answer_is_on_the_list_whatever_its_length(tokenizer):
    given = [example("a b")]
    found = cut(given, tokenizer)
    start, end = logits(found, start={(0, 0): 1, (0, 3): 4}, end={(0, 0): 2, (0, 3): 4})
    entries = answered(given, found, start, end, n_best_size=1, version_2_with_negative=True)[1][
        "q1"
    ]
    assert [(e["text"], e["start_logit"], e["end_logit"]) for e in entries] == [
        ("b", 4, 4),
        ("", 1, 2),
    ]


def test_v2_always_has_a_text_and_no_answer_in_the_list(tokenizer):
    given = [example("a b", text="one"), example("", name="q2")]
    found = cut(given, tokenizer)
    start, end = logits(found, start={(0, 0): 5}, end={(0, 0): 5})
    predictions, nbest, odds = answered(
        given, found, start, end, n_best_size=1, version_2_with_negative=True
    )
    assert predictions == {
        "q1": "",
        "q2": "",
    }  # no valid answer among the best one, and no window at all
    assert [[entry["text"] for entry in nbest[name]] for name in ("q1", "q2")] == [
        ["empty", ""],
        ["empty", ""],
    ]
    assert odds == {"q1": 10.0, "q2": 1e6}


# ---- scores


@pytest.mark.parametrize(
    "gold, found, exact, f1",
    [
        ("Denver Broncos", "the  Denver-Broncos!", 0, 0),  # the hyphen goes without leaving a space
        ("Denver Broncos", " A denver, BRONCOS.", 100, 100),
        ("a man of the people", "man of an people", 100, 100),
        ("theatre", "atre", 0, 0),
        ("one two three", "two three four", 0, 100 * 2 / 3),
        ("one one two", "one two", 0, 80),
        ("one", "", 0, 0),
        ("“one”", "one", 0, 0),  # only ASCII punctuation goes
        ("one\u00a0two", "one two", 100, 100),
    ],
)
def test_scores_by_the_official_rules(gold, found, exact, f1):
    for v2 in (False, True):
        scores = scored([example(gold, gold)], {"q1": found}, v2=v2)
        assert (scores["exact"], scores["f1"]) == (exact, pytest.approx(f1))


def test_the_best_of_several_golds_counts():
    scores = scored([example("one two three", "one two three", "one two")], {"q1": "one two"})
    assert (scores["exact"], scores["f1"]) == (100, 100)


def test_v1_and_v2_differ_where_a_gold_is_only_punctuation_or_articles():
    given = [example("the one.", "one", ".")]
    v1, v2 = (scored(given, {"q1": "the"}, v2=v2) for v2 in (False, True))
    assert [(s["exact"], s["f1"]) for s in (v1, v2)] == [(100, 0), (0, 0)]
    given = [example("the one.", "the")]
    v1, v2 = (scored(given, {"q1": ""}, v2=v2) for v2 in (False, True))
    assert [(s["exact"], s["f1"]) for s in (v1, v2)] == [(100, 0), (100, 100)]


def test_unanswered_questions_are_wrong():
    given = [
        example("one", "one"),
        example("two", "two", name="q2"),
        example("a", "a b", name="q3"),
    ]
    scores = scored(given, {"q2": "two", "other": "x"})
    assert (scores["exact"], scores["total"]) == (pytest.approx(100 / 3), 3)
    assert scored(given, {e.id: "x" for e in given})["exact"] == 0


def test_v2_scores_by_kind_of_question():
    given = [
        example("one", "one"),
        example("two", "two", name="q2"),
        example("x", name="q3"),
        example("x", name="q4"),
    ]
    found = {"q1": "one", "q2": "", "q3": "", "q4": "x"}
    scores = scored(given, found, v2=True)
    assert [scores[key] for key in ("exact", "HasAns_exact", "NoAns_exact", "NoAns_f1")] == [
        50,
        50,
        50,
        50,
    ]
    assert [scores[key] for key in ("total", "HasAns_total", "NoAns_total")] == [4, 2, 2]
    assert scored(given, found, {"q1": -1, "q2": 0, "q3": 0, "q4": 3}, True, 2)["exact"] == 75
    assert scored(given, found, {"q1": -1, "q2": 0, "q3": 0, "q4": 3}, True, -2)["exact"] == 50


def test_best_threshold_is_the_best_of_all():
    rng = np.random.default_rng(1)
    given = [example("one two", *(["one two"] if i % 4 else []), name=str(i)) for i in range(40)]
    found = {e.id: str(rng.choice(["one two", "one two", "one", "x"])) for e in given}
    odds = {e.id: float(rng.normal() + 2 * (not e.answers)) for e in given}
    scores = scored(given, found, odds, True)
    for name in ("exact", "f1"):
        each = [
            scored(given, found, odds, True, threshold)[name]
            for threshold in [-9.0, *odds.values()]
        ]
        assert scores[f"best_{name}"] == pytest.approx(max(each))
        assert scored(given, found, odds, True, scores[f"best_{name}_thresh"])[
            name
        ] == pytest.approx(max(each))
        assert scores[f"best_{name}"] > scores[name]


@pytest.fixture(scope="module")
def real(real_data, tmp_path_factory):
    path = tmp_path_factory.mktemp("squad") / "dev.json"
    path.write_bytes(gzip.decompress((real_data / "SQuAD" / "dev-v1.1.json.gz").read_bytes()))
    return read_squad(path, v2=False)


def test_gold_answers_of_the_real_dev_file_score_100_and_no_predictions_0(real):
    gold = scored(real, {e.id: e.answers[0][0] for e in real})
    assert (gold["exact"], gold["f1"], gold["total"]) == (100.0, 100.0, 10570)
    nothing = scored(real, {})
    assert (nothing["exact"], nothing["f1"], nothing["total"]) == (0.0, 0.0, 10570)


def test_v1_scores_agree_with_torchmetrics(real):
    text = pytest.importorskip("torchmetrics.text")
    rng = np.random.default_rng(2)
    given = real[::40]
    found = {}
    for e in (
        given
    ):  # a gold answer with some words dropped or doubled, some put before it and behind it
        words = e.answers[rng.integers(len(e.answers))][0].split()
        words = [w for w in words for _ in range(rng.choice(3, p=[0.2, 0.7, 0.1]))] or [
            "the",
            "one",
        ]
        found[e.id] = " ".join(
            ["The", *words, "of,"][rng.integers(2) : len(words) + 1 + rng.integers(2)]
        )
    metric = text.SQuAD()
    target = [
        {
            "id": e.id,
            "answers": {
                "text": [t for t, _ in e.answers],
                "answer_start": [s for _, s in e.answers],
            },
        }
        for e in given
    ]
    metric.update([{"id": name, "prediction_text": text} for name, text in found.items()], target)
    theirs, ours = metric.compute(), scored(given, found)
    assert ours["exact"] == pytest.approx(float(theirs["exact_match"]), abs=1e-3)
    assert ours["f1"] == pytest.approx(float(theirs["f1"]), abs=1e-3)
    assert 5 < ours["exact"] < ours["f1"] < 95


# ---- files


def test_files_are_named_as_the_released_code_names_them(tmp_path):
    predictions, nbest = (
        {"q1": "é"},
        {"q1": [{"text": "é", "probability": 1.0, "start_logit": 0.5, "end_logit": 1.5}]},
    )
    Answers(predictions, nbest).write(tmp_path, "")
    assert json.loads((tmp_path / "predictions_.json").read_text(encoding="utf-8")) == predictions
    assert json.loads((tmp_path / "nbest_predictions_.json").read_text(encoding="utf-8")) == nbest
    assert len(list(tmp_path.iterdir())) == 2
    Answers(predictions, nbest, {"q1": -0.5}).write(tmp_path, "70")
    assert json.loads((tmp_path / "null_odds_70.json").read_text()) == {"q1": -0.5}
