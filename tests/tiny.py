"""A small random BERT and small data in the original formats, the same on every machine."""

import json
import random
import re
import shutil
import string
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForPreTraining, BertForSequenceClassification

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = re.findall(
    r"\w+",
    """
    the a of and to in is was it on at by he she they we not no who what where when which how
    river bridge city king queen war book tree house road ship music science light water stone
    winter summer small large old new""",
)
GOOD, BAD = ["fine", "lovely", "great"], ["poor", "awful", "dull"]  # what the labels depend on
VOCABULARY = [
    *SPECIALS,
    *string.ascii_lowercase,
    *(f"##{c}" for c in string.ascii_lowercase),
    *string.digits,
    *(f"##{c}" for c in string.digits),
    *".,?!'\"-()",
    *(w for w in WORDS if len(w) > 1),
    *GOOD,
    *BAD,
]

# header (None: no header), columns of text, column of the label, labels (None: a score)
GLUE = {
    "CoLA": (None, (3,), 1, ("0", "1")),
    "SST-2": ("sentence label", (0,), 1, ("0", "1")),
    "MRPC": ("Quality,#1 ID,#2 ID,#1 String,#2 String", (3, 4), 0, ("0", "1")),
    "STS-B": (
        "index genre filename year old_index source1 source2 sentence1 sentence2 score",
        (7, 8),
        9,
        None,
    ),
    "QQP": ("id qid1 qid2 question1 question2 is_duplicate", (3, 4), 5, ("0", "1")),
    "MNLI": (
        "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse "
        "sentence1_parse sentence2_parse sentence1 sentence2 label1 gold_label",
        (8, 9),
        11,
        ("contradiction", "neutral", "entailment"),
    ),
    "QNLI": ("index question sentence label", (1, 2), 3, ("not_entailment", "entailment")),
    "RTE": ("index sentence1 sentence2 label", (1, 2), 3, ("not_entailment", "entailment")),
    "WNLI": ("index sentence1 sentence2 label", (1, 2), 3, ("0", "1")),
}


def bert(
    folder: Path,
    layers: int = 2,
    width: int = 32,
    positions: int = 64,
    dropout: float = 0.1,
    seed: int = 0,
    **changes,
) -> Path:
    """Write a random BERT with pooler and MLM head as a Hugging Face folder; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * width,
        "max_position_embeddings": positions,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "initializer_range": 0.1,
        **changes,
    }
    config = BertConfig(**settings)
    config.architectures = ["BertForPreTraining"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForPreTraining(config)
    config.save_pretrained(folder)
    state, seen = {}, set()
    for name, value in model.state_dict().items():
        if value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            state[name] = value.contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in VOCABULARY))
    settings = {"do_lower_case": True}  # no length limit
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def classifier(bert: Path, folder: Path) -> Path:
    """Copy a BERT and add the head of a task with two labels, which evaluations need."""
    shutil.copytree(bert, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForSequenceClassification.from_pretrained(folder).save_pretrained(folder)
    return folder


def sentence(
    draw: random.Random, shortest: int = 2, longest: int = 12, mood: list[str] | None = None
) -> str:
    """Return a few words; with `mood`, one of its words among them."""
    words = [draw.choice(WORDS) for _ in range(draw.randint(shortest, longest))]
    if mood:
        words.insert(draw.randrange(len(words) + 1), draw.choice(mood))
    return f"{' '.join(words).capitalize()} ."


def glue(folder: Path, task: str, train: int = 32, dev: int = 24, seed: int = 0) -> Path:
    """Write a GLUE task in its original columns; single words predict the labels."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("dev_matched.tsv", "dev_mismatched.tsv") if task == "MNLI" else ("dev.tsv",)
    for name, count in (("train.tsv", train), *((name, dev) for name in names)):
        draw = random.Random(f"{seed} {task} {name}")
        header = GLUE[task][0]
        lines = [] if header is None else ["\t".join(_columns(header))]
        lines += ["\t".join(_row(draw, task, number)) for number in range(count)]
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder


def _columns(header: str) -> list[str]:
    return header.split("," if "," in header else " ")


def _row(draw: random.Random, task: str, number: int) -> list[str]:
    header, texts, label, labels = GLUE[task]
    columns = 4 if header is None else len(_columns(header))
    row = [str(number)] * columns
    grade = draw.random() if labels is None else draw.randrange(len(labels)) / (len(labels) - 1)
    row[label] = f"{5 * grade:.3f}" if labels is None else labels[round(grade * (len(labels) - 1))]
    for text in texts:
        row[text] = sentence(draw, mood=GOOD if draw.random() < grade else BAD)
    return row


def squad(
    folder: Path, train: int = 6, dev: int = 4, impossible: bool = False, seed: int = 0
) -> Path:
    """Write train-v1.1.json and dev-v1.1.json with `train` and `dev` contexts of two questions.

    With `impossible`, every second question has no answer, as in SQuAD 2.0. Questions of dev have
    a second answer, the first word of the correct one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("dev", dev)):
        draw = random.Random(f"{seed} {name}")
        paragraphs = [
            _paragraph(draw, f"{name}-{number}", name == "dev", impossible)
            for number in range(count)
        ]
        half = (count + 1) // 2
        articles = [
            {"title": f"{name} {at}", "paragraphs": part}
            for at, part in enumerate((paragraphs[:half], paragraphs[half:]))
            if part
        ]
        (folder / f"{name}-v1.1.json").write_text(json.dumps({"version": "1.1", "data": articles}))
    return folder


def _paragraph(draw: random.Random, key: str, dev: bool, impossible: bool) -> dict:
    context = " ".join(sentence(draw, 6, 14, GOOD) for _ in range(draw.randint(2, 5)))
    questions = []
    for number in range(2):
        words = context.split()
        first = draw.randrange(len(words) - 4)
        size = draw.randint(1, 3)
        start = len(" ".join(words[:first])) + (first > 0)
        answers = [{"text": " ".join(words[first : first + size]), "answer_start": start}]
        if dev:
            answers.append({"text": words[first], "answer_start": start})
        question = {
            "id": f"{key}-{number}",
            "question": f"what is {words[first]} {words[first + size]} ?",
        }
        if impossible:
            question["is_impossible"] = bool(number)
        questions.append({**question, "answers": [] if impossible and number else answers})
    return {"context": context, "qas": questions}


def text(folder: Path, train: int = 120, valid: int = 40, seed: int = 0) -> Path:
    """Write en.train and en.valid with `train` and `valid` lines of 1 to 3 sentences or none."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("en.train", train), ("en.valid", valid)):
        draw = random.Random(f"{seed} {name}")
        lines = [
            "" if at % 7 == 6 else " ".join(sentence(draw) for _ in range(draw.randint(1, 3)))
            for at in range(count)
        ]
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder
