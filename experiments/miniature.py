"""Write the quickstart's data: an artificial language, a text and a task in it, a BERT config."""

if __name__ == "__main__":
    import _root  # noqa: F401

import itertools
import json
import random
from pathlib import Path

from utils import cli, files
from utils.errors import UserError

GENDERS = range(4)
FORMS = {"determiner": 2, "adjective": 8, "noun": 8, "verb": 8}  # words per kind and gender
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
    """Words in classes, and a grammar over the classes.

        sentence: phrase(g) verb(g) phrase(h), half of them with a preposition and a third phrase
        phrase(g): determiner(g), in half of them adjective(g), noun(g)

    Only the neighbours of a word show its class; its spelling does not. Pre-training can learn the
    classes from them. Within a class, each word is twice as frequent as the next.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        spellings = ["".join(pair) for pair in itertools.product(SYLLABLES, repeat=2)]
        self.random.shuffle(spellings)
        unused = iter(spellings)
        sizes = {(kind, gender): size for kind, size in FORMS.items() for gender in GENDERS}
        sizes["preposition", 0] = PREPOSITIONS
        self.words = {each: list(itertools.islice(unused, size)) for each, size in sizes.items()}

    def sentence(self) -> list[WordClass]:
        """Return the word classes of a random sentence."""
        subject = self.random.choice(GENDERS)
        classes = [*self._phrase(subject), ("verb", subject)]
        classes += self._phrase(self.random.choice(GENDERS))
        if self.random.random() < 0.5:
            classes += [("preposition", 0), *self._phrase(self.random.choice(GENDERS))]
        return classes

    def _phrase(self, gender: int) -> list[WordClass]:
        adjectives = [("adjective", gender)] if self.random.random() < 0.5 else []
        return [("determiner", gender), *adjectives, ("noun", gender)]

    def corrupt(self, sentence: list[WordClass]) -> list[WordClass]:
        """Return `sentence` with WRONG words in another gender, so that it breaks the grammar."""
        gendered = [at for at, (kind, _) in enumerate(sentence) if kind != "preposition"]
        corrupted = sentence
        while acceptable(corrupted):  # a whole phrase may have changed
            corrupted = list(sentence)
            for at in sorted(self.random.sample(gendered, WRONG)):
                kind, gender = sentence[at]
                others = [each for each in GENDERS if each != gender]
                corrupted[at] = (kind, self.random.choice(others))
        return corrupted

    def spell(self, sentence: list[WordClass], words: slice = slice(None)) -> str:
        """Return a sentence of these classes that uses only `words` of each class."""
        spelled = []
        for each in sentence:
            choices = self.words[each][words]
            frequencies = [2.0**-rank for rank in range(len(choices))]
            spelled += self.random.choices(choices, frequencies)
        return " ".join([*spelled, "."])

    def acceptability(self, rows: int, words: slice) -> str:
        """Return rows in CoLA's format: half sentences (1), half corrupt ones (0), on average."""
        lines = []
        for _ in range(rows):
            sentence, label = self.sentence(), self.random.randrange(2)
            spelled = self.spell(sentence if label else self.corrupt(sentence), words)
            lines.append(f"mini\t{label}\t{'' if label else '*'}\t{spelled}\n")
        return "".join(lines)


def acceptable(sentence: list[WordClass]) -> bool:
    """Return whether genders agree from each determiner to its noun, and from subject to verb."""
    return all(
        gender == next_gender
        for (kind, gender), (next_kind, next_gender) in itertools.pairwise(sentence)
        if kind in ("determiner", "adjective") or next_kind == "verb"
    )


def build(folder: Path, language: Language) -> None:
    """Write FOLDER/bert (config.json, vocab.txt) and FOLDER/data (pretrain_data, glue_data/CoLA).

    Training rows of the task use the 1st, 3rd, ... word of each class, evaluation rows the others:
    what a network learns about the words of the training rows does not help there.
    Raises UserError, with nothing written, if a file exists with other content.
    """
    vocabulary = [*SPECIAL, *itertools.chain.from_iterable(language.words.values())]
    config = BERT | {"vocab_size": len(vocabulary)}
    contents = {
        "bert/vocab.txt": "".join(f"{word}\n" for word in vocabulary),
        "bert/config.json": json.dumps(config, indent=2) + "\n",
    }
    for name, count in SENTENCES.items():
        sentences = (language.spell(language.sentence()) for _ in range(count))
        contents[f"data/pretrain_data/{name}"] = "".join(f"{each}\n" for each in sentences)
    for first, (name, rows) in enumerate(ROWS.items()):
        words = slice(first, None, 2)
        contents[f"data/glue_data/CoLA/{name}"] = language.acceptability(rows, words)
    new = [name for name in contents if not (folder / name).exists()]
    for name in contents.keys() - set(new):
        if (folder / name).read_bytes() != contents[name].encode():
            raise UserError(f"{folder / name}: exists with other content; give another folder")
    for name in new:  # a new date would invalidate the text's cache
        files.write_text(folder / name, contents[name])


def main(argv: list[str] | None = None) -> None:
    """Write the miniature and describe it."""
    parser = cli.OneLineParser(__doc__)
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--seed", type=int, default=1, help="seed of all sentences")
    args = parser.parse_args(argv)
    language = Language(args.seed)
    build(args.folder, language)
    example, (train, dev) = language.spell(language.sentence()), ROWS.values()
    print(
        f'{args.folder}: {SENTENCES["en.train"]:,} sentences such as "{example}", and an '
        f"acceptability task of {train:,} and {dev:,} sentences (in CoLA's format) without a "
        "common word"
    )


if __name__ == "__main__":
    cli.run(main)
