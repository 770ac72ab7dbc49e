"""The flags of a command in a list, held against what the run or file that lies in its place was made with."""

import math
import re

SPELLED = {
    "--dir": "--init",
    "--local-rank": "--local_rank",
    "--no_compile": "--compile=False",
}  # as the scripts keep them
PLACE = ("output_dir", "output")  # where it lies says nothing of how it was made
AFTER = re.compile(r"\d*[<>]|[|&;#]")  # how a word begins with which the shell leaves the command
EXPANDED = re.compile(r"[$`*?~]")  # a word that the shell may change
ROUNDED = {"rate": 1e-3}  # told as the sparsity reached, in whole weights

Flags = tuple[tuple[str, tuple[str, ...]], ...]  # (name, the words after it)


def given(words: list[str]) -> Flags:
    """The flags behind the script's name, as the scripts keep them; of one given twice the last."""
    scripts = [place for place, word in enumerate(words) if word.endswith(".py")]
    found: dict[str, list[str]] = {}
    after: list[str] = []  # of the flag at hand
    for word in words[scripts[-1] + 1 :] if scripts else ():
        if AFTER.match(word):
            break
        if word.startswith("--"):
            flag, *value = word.split("=", 1)
            name, *fixed = SPELLED.get(flag, flag).removeprefix("--").split("=")
            after = found[name] = [*fixed, *value]
        else:
            after.append(word)
    return tuple((name, tuple(after)) for name, after in found.items() if name not in PLACE)


def of_file(info: dict) -> dict:
    """The arguments of oneshot.py or pertub_weight.py, as far as the file beside what they wrote tells them."""
    method = info.get("method")
    told = {name: info.get(name) for name in ("weight", "seed", "mode", "sigma")}
    told |= {
        "model_name_or_path": info.get("model"),
        "rate": info.get("sparsity"),
        "method": "magnitude" if method == "omp" else method,
    }
    if method == "omp" and info.get("weight") == "pre":
        told["seed"] = None  # nothing was drawn
    return {name: value for name, value in told.items() if value is not None}


def differing(flags: Flags, recorded: dict) -> dict[str, str]:
    """Flag -> both values, of the flags whose value in `recorded` is another; what is not recorded is not compared."""
    return {
        name: f"--{name} {recorded[name]} there, {' '.join(words) or True} here"
        for name, words in flags
        if name in recorded and not _same(recorded[name], words, ROUNDED.get(name, 0.0))
    }


def _same(value, words: tuple[str, ...], tolerance: float) -> bool:
    """Whether argparse makes `value` of these words."""
    if any(EXPANDED.search(word) for word in words):
        return True  # only the shell can tell
    if isinstance(value, bool):
        return value is (words != ("False",))
    if isinstance(value, list):
        return len(value) == len(words) and all(
            _same(*pair, tolerance) for pair in zip(value, zip(words), strict=True)
        )
    if isinstance(value, int | float):
        return len(words) == 1 and math.isclose(
            _number(words[0]), value, rel_tol=0.0, abs_tol=tolerance
        )
    return words == (value,)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan
