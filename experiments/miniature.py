"""A miniature for the quickstart: an artificial language, a text and a GLUE task in it, and the shape of a small BERT."""

import argparse
import itertools
import json
import random
import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # so that `python experiments/miniature.py` finds utils

from experiments import command
from utils import files

GENDERS = range(4)
FORMS = {"determiner": 2, "adjective": 8, "noun": 8, "verb": 8}  # words of each kind in each gender
PREPOSITIONS = 4  # words without gender
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".")
SYLLABLES = tuple(a + b for a, b in itertools.product("bdfgklmnprstvz", "aeiou"))
WRONG = 3  # words of a wrong gender in a sentence that is not acceptable
SENTENCES = {"en.train": 30_000, "en.valid": 1_000}
ROWS = {"train.tsv": 4_000, "dev.tsv": 1_000}
BERT = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.05,
}

WordClass = tuple[str, int]  # kind and gender (0 for prepositions)


class Language:
    """Words in classes, and a grammar over the classes:

        sentence: phrase(g) verb(g) phrase(h), in half of them followed by a preposition and another phrase, and a full stop
        phrase(g): determiner(g), in half of them adjective(g), noun(g)

    What a word's class is shows in its neighbours alone, for spelling tells nothing: that is what pre-training can teach.
    Within a class the first word is twice as frequent as the second, and so on.
    """

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        spellings = ["".join(pair) for pair in itertools.product(SYLLABLES, repeat=2)]
        self.random.shuffle(spellings)
        fresh = iter(spellings)
        sizes = {(kind, gender): size for kind, size in FORMS.items() for gender in GENDERS}
        sizes["preposition", 0] = PREPOSITIONS
        self.words = {each: list(itertools.islice(fresh, size)) for each, size in sizes.items()}

    def vocabulary(self) -> list[str]:
        """Every WordPiece: BERT's special ones, the full stop, the words."""
        return [*SPECIAL, *itertools.chain.from_iterable(self.words.values())]

    def classes(self) -> list[WordClass]:
        """The word classes of a random sentence."""
        subject = self.random.choice(GENDERS)
        sentence = [
            *self._phrase(subject),
            ("verb", subject),
            *self._phrase(self.random.choice(GENDERS)),
        ]
        if self.random.random() < 0.5:
            sentence += [("preposition", 0), *self._phrase(self.random.choice(GENDERS))]
        return sentence

    def _phrase(self, gender: int) -> list[WordClass]:
        adjectives = [("adjective", gender)] if self.random.random() < 0.5 else []
        return [("determiner", gender), *adjectives, ("noun", gender)]

    def spoilt(self, sentence: list[WordClass]) -> list[WordClass]:
        """`sentence` with WRONG of its words in another gender, so that it is no sentence of the language any more."""
        places = [place for place, (kind, _) in enumerate(sentence) if kind != "preposition"]
        spoilt = sentence
        while acceptable(spoilt):  # a whole phrase may have changed
            wrong = set(self.random.sample(places, WRONG))
            spoilt = [
                (kind, self._other(gender)) if place in wrong else (kind, gender)
                for place, (kind, gender) in enumerate(sentence)
            ]
        return spoilt

    def _other(self, gender: int) -> int:
        return self.random.choice([g for g in GENDERS if g != gender])

    def spelt(self, sentence: list[WordClass], words: slice = slice(None)) -> str:
        """A sentence of these classes, using only `words` of each class."""
        return " ".join([*(self._word(self.words[each][words]) for each in sentence), "."])

    def _word(self, words: list[str]) -> str:
        return self.random.choices(words, [2.0**-rank for rank in range(len(words))])[0]

    def text(self, sentences: int) -> str:
        """Acceptable sentences, one a line."""
        return "".join(f"{self.spelt(self.classes())}\n" for _ in range(sentences))

    def acceptability(self, rows: int, words: slice) -> str:
        """Rows in CoLA's format: 1 for a sentence of the language, 0 for a spoilt one, about as many."""
        lines = []
        for _ in range(rows):
            sentence, label = self.classes(), self.random.randrange(2)
            spelt = self.spelt(sentence if label else self.spoilt(sentence), words)
            lines.append(f"mini\t{label}\t{'' if label else '*'}\t{spelt}\n")
        return "".join(lines)


def acceptable(sentence: list[WordClass]) -> bool:
    """Whether genders agree from each determiner to its noun, and on to the verb."""
    return all(
        a == b
        for (kind, a), (following, b) in itertools.pairwise(sentence)
        if kind in ("determiner", "adjective") or following == "verb"
    )


def build(folder: Path, seed: int) -> None:
    """Write FOLDER/bert (config.json, vocab.txt) and FOLDER/data (pretrain_data, glue_data/CoLA), the same for one seed.

    Training rows of the task have the 1st, 3rd, ... word of each class alone, evaluation rows the 2nd, 4th, ...: what a
    network learns of the words in its training rows does not help it there.
    """
    language = Language(seed)
    vocabulary = language.vocabulary()
    _write(folder / "bert/vocab.txt", "".join(f"{word}\n" for word in vocabulary))
    _write(
        folder / "bert/config.json",
        json.dumps(BERT | {"vocab_size": len(vocabulary)}, indent=2) + "\n",
    )
    for name, sentences in SENTENCES.items():
        _write(folder / "data/pretrain_data" / name, language.text(sentences))
    for first, (name, rows) in enumerate(ROWS.items()):
        _write(
            folder / "data/glue_data/CoLA" / name,
            language.acceptability(rows, slice(first, None, 2)),
        )


def _write(path: Path, text: str) -> None:
    if (
        not path.is_file() or path.read_text(encoding="utf-8") != text
    ):  # a new date would make the text's cache void
        files.write_text(path, text)


def main(argv: list[str] | None = None) -> None:
    """Write the miniature and say what it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument(
        "--seed", type=int, default=1, help="seed of the language and of all sentences (default: 1)"
    )
    args = parser.parse_args(argv)
    build(args.folder, args.seed)
    first = next(iter(Language(args.seed).text(1).splitlines()))
    print(
        f'{args.folder}: {SENTENCES["en.train"]:,} sentences such as "{first}", and an acceptability task of '
        f"{ROWS['train.tsv']:,} and {ROWS['dev.tsv']:,} sentences (in CoLA's format) without a common word"
    )


if __name__ == "__main__":
    command.run(main)
