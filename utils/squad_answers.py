"""From start and end logits to SQuAD answers, their scores and the files that hold them."""

import os
import re
import string
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from utils import files
from utils.squad_data import WORD, SquadWindows
from utils.squad_json import SquadExample

_NO_WINDOW_NULL_SCORE = (
    1e6  # the released code's score of "no answer" for a question without windows
)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def best_answers(
    examples: list[SquadExample],
    windows: SquadWindows,
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
    n_best_size: int = 20,
    max_answer_length: int = 30,
    v2: bool = False,
    null_score_diff_threshold: float = 0.0,
    verbose: bool = False,
) -> tuple[dict[str, str], dict[str, list[dict]], dict[str, float]]:
    """The answer to each question, its n-best list and (`v2`) how far "no answer" is ahead, all by question id.

    `start_logits[w]`, `end_logits[w]`: one float per token of window w; longer rows may go on with anything (-inf for
    "no token"; the released code's rows went on with the logits of padding, which compete for the n best places).
    An n-best entry is {text, probability, start_logit, end_logit}, the probabilities are softmax over the list.
    A question without any valid span gets the answer "empty". With `v2`, the answer is "" where the score of [CLS]
    minus that of the best span (logits, as in the third result) exceeds the threshold. `verbose`: a line on stderr for
    each answer that was widened to whole words and each question without a valid span.
    """
    if not len(start_logits) == len(end_logits) == len(windows):
        raise ValueError(
            f"{len(start_logits)} and {len(end_logits)} rows of logits for {len(windows)} windows"
        )
    predictions, nbest, null_odds = {}, {}, {}
    bounds = np.searchsorted(windows.example, np.arange(len(examples) + 1))
    for index, example in enumerate(examples):
        own = range(bounds[index], bounds[index + 1])
        null = _null_score(own, start_logits, end_logits) if v2 else None
        spans = _spans(own, windows, start_logits, end_logits, n_best_size, max_answer_length)
        entries = _n_best(_texts(example, windows, spans, null, verbose), n_best_size, null)
        nbest[example.id] = _with_probabilities(entries)
        predictions[example.id] = entries[0][0]
        if verbose and entries[0][0] == "empty":
            print(f"question {example.id!r}: no valid answer span", file=sys.stderr)
        if v2:
            text, start, end = next(entry for entry in entries if entry[0])
            odds = (sum(null) if own else _NO_WINDOW_NULL_SCORE) - start - end
            null_odds[example.id] = odds
            predictions[example.id] = "" if odds > null_score_diff_threshold else text
    return predictions, nbest, null_odds


def _null_score(
    own: range, start_logits: Sequence[np.ndarray], end_logits: Sequence[np.ndarray]
) -> tuple:
    """Start and end logit of [CLS] in the window where their sum is smallest, (0, 0) without windows."""
    pairs = [(float(start_logits[w][0]), float(end_logits[w][0])) for w in own]
    return min(pairs, key=sum, default=(0.0, 0.0))


def _spans(
    own: range,
    windows: SquadWindows,
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
    n_best_size: int,
    max_answer_length: int,
) -> Iterator[tuple[int, int, float, float]]:
    """(first, last context token, start logit, end logit) of a question's valid spans, the best first.

    Valid: start and end among the n best of their window, the start with its maximum context, not too long.
    """
    parts = []
    for w in own:
        starts, start_scores = _top(start_logits[w], n_best_size)
        ends, end_scores = _top(end_logits[w], n_best_size)
        at, stop = windows.rows.starts[w], windows.rows.starts[w + 1]
        in_context = np.flatnonzero(windows.max_context[at:stop])
        length = ends[None, :] - starts[:, None] + 1
        valid = np.isin(starts, in_context)[:, None] & (length > 0) & (length <= max_answer_length)
        valid &= ends < stop - at - 1  # the last token is [SEP], and behind it is only padding
        s, e = np.nonzero(valid)
        shift = windows.base[w] - windows.first[w]
        parts.append(np.stack([starts[s] + shift, ends[e] + shift, start_scores[s], end_scores[e]]))
    if not parts:
        return iter(())
    table = np.concatenate(parts, axis=1)
    order = np.argsort(-(table[2] + table[3]), kind="stable")
    return (
        (int(first), int(last), start, end)
        for first, last, start, end in table[:, order].T.tolist()
    )


def _top(logits: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and values (float64) of the n largest logits, of equal ones the earlier first."""
    logits = np.asarray(logits, dtype=np.float64)
    best = np.argsort(-logits, kind="stable")[:n]
    return best, logits[best]


def _texts(
    example: SquadExample,
    windows: SquadWindows,
    spans: Iterator[tuple[int, int, float, float]],
    null: tuple | None,
    verbose: bool,
) -> Iterator[tuple[str, float, float]]:
    """(text, start logit, end logit) of the spans, with "" for `null` behind all spans that score at least as much."""
    for first, last, start, end in spans:
        if null and start + end < sum(null):
            yield "", *null
            null = None
        left, right = int(windows.char_start[first]), int(windows.char_end[last])
        if windows.inside_word[first]:
            left, right = _whole_words(example.context, left, right)
            if verbose:
                print(
                    f"question {example.id!r}: a span that starts inside a word was widened to "
                    f"{example.context[left:right]!r}",
                    file=sys.stderr,
                )
        yield example.context[left:right], start, end
    if null:
        yield "", *null


def _whole_words(context: str, left: int, right: int) -> tuple[int, int]:
    """The span with the rest of its first and last word: no gold answer ever makes a model start inside a word."""
    while left > 0 and WORD.match(context[left - 1]):
        left -= 1
    while right < len(context) and WORD.match(context[right]):
        right += 1
    return left, right


def _n_best(
    texts: Iterator[tuple[str, float, float]], n_best_size: int, null: tuple | None
) -> list[tuple[str, float, float]]:
    """The first `n_best_size` different texts, and what the released code adds so that there always is an answer."""
    entries, seen = [], set()
    for entry in texts:
        if entry[0] not in seen:
            seen.add(entry[0])
            entries.append(entry)
        if len(entries) == n_best_size:
            break
    if null and "" not in seen:
        entries.append(("", *null))
    if all(not text for text, _, _ in entries):
        entries.insert(0, ("empty", 0.0, 0.0))
    return entries


def _with_probabilities(entries: list[tuple[str, float, float]]) -> list[dict]:
    scores = np.array([start + end for _, start, end in entries])
    odds = np.exp(scores - scores.max())
    return [
        {"text": text, "probability": float(share), "start_logit": start, "end_logit": end}
        for (text, start, end), share in zip(entries, odds / odds.sum(), strict=True)
    ]


# ---- scores


def squad_metrics(
    examples: list[SquadExample],
    predictions: dict[str, str],
    v2: bool = False,
    null_odds: dict[str, float] | None = None,
    threshold: float = 0.0,
) -> dict[str, float]:
    """Exact match and F1 in percent over all questions, under the released code's keys.

    Rules: the official evaluation script's, v1.1 or (`v2`) v2.0; they differ only where a text is empty once case,
    punctuation and articles are gone. A question without a prediction counts as wrong, one line on stderr says so.
    `null_odds` above `threshold` stand for the prediction "". HasAns_*, NoAns_*: the part with and without answers,
    best_*: the scores at the threshold (best_*_thresh) that suits these questions best.
    """
    exact, f1 = _scores(examples, predictions, v2)
    answerable = {e.id: bool(e.answers) for e in examples}
    odds = {e.id: (null_odds or {}).get(e.id, 0.0) for e in examples}
    results = {}
    for prefix, ids in _subsets(answerable):
        for name, scores in (("exact", exact), ("f1", f1)):
            final = [
                float(not answerable[i]) if null_odds and odds[i] > threshold else scores[i]
                for i in ids
            ]
            results[f"{prefix}{name}"] = 100.0 * sum(final) / len(ids)
        results[f"{prefix}total"] = len(ids)
    for name, scores in (("exact", exact), ("f1", f1)):
        best, at = _best_threshold(scores, predictions, odds, answerable)
        results[f"best_{name}"], results[f"best_{name}_thresh"] = best, at
    return results


def _scores(
    examples: list[SquadExample], predictions: dict[str, str], v2: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Exact match and F1 of every question, in [0, 1]; 0 where there is no prediction."""
    exact, f1 = {e.id: 0.0 for e in examples}, {e.id: 0.0 for e in examples}
    missing = [e.id for e in examples if e.id not in predictions]
    if missing:
        print(
            f"warning: {len(missing)} of {len(examples)} questions have no prediction and count as wrong "
            f"(first: {missing[0]!r})",
            file=sys.stderr,
        )
    for example in examples:
        if example.id in predictions:
            found = normalized(predictions[example.id])
            gold = [normalized(text) for text, _ in example.answers]
            if v2:
                gold = [text for text in gold if text] or [""]
            exact[example.id] = max(float(text == found) for text in gold)
            f1[example.id] = max(_f1(text.split(), found.split(), v2) for text in gold)
    return exact, f1


def normalized(text: str) -> str:
    """Lower case, without ASCII punctuation, the words a, an, the and superfluous spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _f1(gold: list[str], found: list[str], v2: bool) -> float:
    if v2 and not (gold and found):
        return float(gold == found)
    common = sum((Counter(gold) & Counter(found)).values())
    return 2 * common / (len(gold) + len(found)) if common else 0.0


def _subsets(answerable: dict[str, bool]) -> list[tuple[str, list[str]]]:
    """(prefix of the keys, ids) of all questions, and of those with and without answers if there are any."""
    parts = [("", list(answerable))]
    parts += [
        (p, [i for i, has in answerable.items() if has == want])
        for p, want in (("HasAns_", 1), ("NoAns_", 0))
    ]
    return [(prefix, ids) for prefix, ids in parts if ids]


def _best_threshold(
    scores: dict[str, float],
    predictions: dict[str, str],
    odds: dict[str, float],
    answerable: dict[str, bool],
) -> tuple[float, float]:
    """Best score in percent when questions with odds above one threshold are taken as unanswerable, and that threshold.

    Starts with all of them unanswerable and takes them as answered by rising odds, as the official script does.
    """
    score = best = float(sum(not has for has in answerable.values()))
    at = 0.0
    for name in sorted(odds, key=odds.get):
        if answerable[name]:
            score += scores[name]
        elif predictions.get(name):
            score -= 1
        if score > best:
            best, at = score, odds[name]
    return 100.0 * best / len(scores), at


# ---- files


def write_predictions(
    folder: str | os.PathLike,
    prefix: str,
    predictions: dict[str, str],
    nbest: dict[str, list[dict]],
    null_odds: dict[str, float] | None = None,
) -> None:
    """Write predictions_PREFIX.json, nbest_predictions_PREFIX.json and, for SQuAD 2.0, null_odds_PREFIX.json."""
    named = {files.PREDICTIONS: predictions, files.NBEST: nbest}
    if null_odds is not None:
        named[files.NULL_ODDS] = null_odds
    for name, value in named.items():
        files.write_json(Path(folder) / name.format(prefix=prefix), value)
