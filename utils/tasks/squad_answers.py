"""From start and end logits to SQuAD answers, their scores and the files that hold them."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils import files
from utils.config import SquadConfig
from utils.data.squad import SquadExample
from utils.data.squad_windows import WORD, SquadWindows

_NO_WINDOW_NULL_SCORE = 1e6  # score of "no answer" for a question without windows, as released
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass
class Answers:
    """Answers by question id.

    texts: the answers; nbest: entries {text, probability, start_logit, end_logit}, best first, the
    probabilities a softmax over the list; null_odds (SQuAD 2.0 only): by how much the score of "no
    answer" exceeds that of the best span.
    """

    texts: dict[str, str] = field(default_factory=dict)
    nbest: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    null_odds: dict[str, float] = field(default_factory=dict)

    def write(self, folder: Path, prefix: str) -> None:
        """Write the answers, the n-best lists and (SQuAD 2.0) the odds, named as released."""
        files.write_json(folder / files.PREDICTIONS.format(prefix=prefix), self.texts)
        files.write_json(folder / files.NBEST.format(prefix=prefix), self.nbest)
        if self.null_odds:
            files.write_json(folder / files.NULL_ODDS.format(prefix=prefix), self.null_odds)


class _Candidate(NamedTuple):
    """A possible answer; the text "" is "no answer"."""

    text: str
    start: float  # its start logit
    end: float

    @property
    def score(self) -> float:
        return self.start + self.end


def best_answers(
    examples: list[SquadExample],
    windows: SquadWindows,
    start_logits: Sequence[np.ndarray] | np.ndarray,
    end_logits: Sequence[np.ndarray] | np.ndarray,
    config: SquadConfig,
) -> Answers:
    """Choose the answer to each question as the released code does.

    `start_logits[w]`, `end_logits[w]`: one float per token of window w. Longer rows are allowed:
    logits of padding compete for the n_best_size best logits, as in the released code, but are
    never part of an answer.
    A question without a valid span gets the answer "empty". In SQuAD 2.0 the answer is "" if the
    score of [CLS] exceeds that of the best span by more than null_score_diff_threshold. With
    verbose_logging, a warning names each answer widened to whole words and each question without a
    valid span.
    """
    answers = Answers()
    bounds = np.searchsorted(windows.example, np.arange(len(examples) + 1)).tolist()
    for index, example in enumerate(examples):
        own = range(bounds[index], bounds[index + 1])  # the windows of the question
        spans = [_valid_spans(windows, w, start_logits[w], end_logits[w], config) for w in own]
        null = None
        if config.version_2_with_negative:
            nulls = [
                _Candidate("", float(start_logits[w][0]), float(end_logits[w][0])) for w in own
            ]
            null = min(nulls, key=lambda each: each.score, default=_Candidate("", 0.0, 0.0))
        nbest = _n_best(example, windows, spans, null, config)
        scores = np.array([each.score for each in nbest])
        shares = np.exp(scores - scores.max())
        probabilities = (shares / shares.sum()).tolist()
        answers.nbest[example.id] = [
            {"text": text, "probability": share, "start_logit": start, "end_logit": end}
            for (text, start, end), share in zip(nbest, probabilities, strict=True)
        ]
        answers.texts[example.id] = nbest[0].text
        if config.verbose_logging and nbest[0].text == "empty":
            files.warn(f"question {example.id!r}: no valid answer span")
        if null is not None:
            best = next(candidate for candidate in nbest if candidate.text)
            odds = (null.score if own else _NO_WINDOW_NULL_SCORE) - best.start - best.end
            answers.null_odds[example.id] = odds
            no_answer = odds > config.null_score_diff_threshold
            answers.texts[example.id] = "" if no_answer else best.text
    return answers


def _valid_spans(
    windows: SquadWindows, w: int, start: np.ndarray, end: np.ndarray, config: SquadConfig
) -> np.ndarray:
    """Spans of window `w`, best starts first: first and last token, start and end logit, [n, 4].

    Tokens are numbered over all contexts. Valid: start and end are among the n best of the window,
    the start has its maximum context here, and the span is not too long.
    """
    offset, stop = windows.starts[w], windows.starts[w + 1]
    last = stop - offset - 1  # [SEP]; only padding follows
    starts, ends = (np.argsort(-each, kind="stable")[: config.n_best_size] for each in (start, end))
    starts, ends = starts[starts < last], ends[ends < last]
    length = ends - starts[:, None] + 1
    valid = (length > 0) & (length <= config.max_answer_length)
    s, e = np.nonzero(valid & windows.max_context[offset + starts][:, None])
    s, e = starts[s], ends[e]
    shift = windows.base[w] - windows.first[w]
    return np.stack([s + shift, e + shift, start[s], end[e]], axis=1, dtype=np.float64)


def _n_best(
    example: SquadExample,
    windows: SquadWindows,
    spans: list[np.ndarray],
    null: _Candidate | None,
    config: SquadConfig,
) -> list[_Candidate]:
    """The n_best_size best distinct texts, then `null`; "empty" leads if there is no text.

    Of equal scores the earlier span leads, and `null` comes last.
    """
    null_row = [] if null is None else [[-1, -1, null.start, null.end]]
    table = np.concatenate([np.zeros((0, 4)), *spans, np.reshape(null_row, (-1, 4))])
    found: dict[str, _Candidate] = {}
    for row in np.argsort(-(table[:, 2] + table[:, 3]), kind="stable"):
        first, last, start, end = table[row].tolist()
        text = "" if first < 0 else _text(example, windows, int(first), int(last), config)
        found.setdefault(text, _Candidate(text, start, end))
        if len(found) == config.n_best_size:
            break
    if null is not None:
        found.setdefault("", null)
    if not any(found):
        found = {"empty": _Candidate("empty", 0.0, 0.0), **found}
    return list(found.values())


def _text(
    example: SquadExample, windows: SquadWindows, first: int, last: int, config: SquadConfig
) -> str:
    """The text of a span, widened to whole words if it starts inside a word, as no answer does."""
    context = example.context
    left, right = int(windows.char_start[first]), int(windows.char_end[last])
    if windows.inside_word[first]:
        while left > 0 and WORD.match(context[left - 1]):
            left -= 1
        while right < len(context) and WORD.match(context[right]):
            right += 1
        if config.verbose_logging:
            widened = f"a span that starts inside a word was widened to {context[left:right]!r}"
            files.warn(f"question {example.id!r}: {widened}")
    return context[left:right]


def squad_metrics(
    examples: list[SquadExample],
    predictions: dict[str, str],
    config: SquadConfig,
    null_odds: dict[str, float] | None = None,
    scores: np.ndarray | None = None,
) -> dict[str, float]:
    """Exact match and F1 in percent over all questions, under the released code's keys.

    Rules: the official evaluation script's, v1.1 or v2.0; they differ only if a text is empty
    without case, punctuation and articles. A question without a prediction counts as wrong.
    `null_odds` above null_score_diff_threshold replace the prediction by "". HasAns_*, NoAns_*:
    questions with and without answers; best_*: the scores at the threshold (best_*_thresh) that is
    best for these questions. `scores`: those of `question_scores`, if they are known.
    """
    if scores is None:
        scores = question_scores(examples, predictions, config)
    odds = np.array([null_odds.get(e.id, 0.0) if null_odds else 0.0 for e in examples])
    answerable = np.array([bool(e.answers) for e in examples])
    answered = np.array([bool(predictions.get(e.id)) for e in examples])
    refused = odds > config.null_score_diff_threshold if null_odds else np.zeros(len(odds), bool)
    final = np.where(refused[:, None], ~answerable[:, None], scores)

    results: dict[str, float] = {}
    groups = {"": np.ones(len(examples), bool), "HasAns_": answerable, "NoAns_": ~answerable}
    for prefix, chosen in groups.items():
        total = int(chosen.sum())
        if total:
            exact, f1 = (100 * sum(column.tolist()) / total for column in final[chosen].T)
            results[f"{prefix}exact"], results[f"{prefix}f1"] = exact, f1
            results[f"{prefix}total"] = total
    order = np.argsort(odds, kind="stable")
    for name, score in zip(("exact", "f1"), scores.T, strict=True):
        # Start with every question unanswered and admit answers by ascending odds, as the official
        # script does.
        gains = np.where(answerable, score, -answered.astype(float))[order]
        totals = np.cumsum([np.sum(~answerable), *gains])
        best = int(totals.argmax())
        results[f"best_{name}"] = 100 * float(totals[best]) / len(examples)
        results[f"best_{name}_thresh"] = float(odds[order][best - 1]) if best else 0.0
    return results


def question_scores(
    examples: list[SquadExample], predictions: dict[str, str], config: SquadConfig
) -> np.ndarray:
    """Return exact match and F1 of each question as fractions, float64 [n, 2]."""
    v2 = config.v2_scores
    return np.array([_score(e, predictions.get(e.id), v2) for e in examples])


def _score(example: SquadExample, prediction: str | None, v2: bool) -> tuple[float, float]:
    """Exact match and F1 of one question, in [0, 1]."""
    if prediction is None:
        return 0.0, 0.0
    found = normalize(prediction)
    gold = [normalize(text) for text, _ in example.answers]
    if v2:
        gold = [text for text in gold if text] or [""]
    exact = max(float(text == found) for text in gold)
    return exact, max(_f1(text.split(), found.split(), v2) for text in gold)


def normalize(text: str) -> str:
    """Lower-case `text`; remove ASCII punctuation, the words a, an, the and superfluous spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _f1(gold: list[str], found: list[str], v2: bool) -> float:
    if v2 and not (gold and found):
        return float(gold == found)
    common = sum((Counter(gold) & Counter(found)).values())
    return 2 * common / (len(gold) + len(found)) if common else 0.0
