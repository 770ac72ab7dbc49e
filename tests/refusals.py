"""Commands with wrong input: their flags, and what every refusal must be."""

import json

from launch import Ended


def flags(inputs, script, **given):
    """A command that works, with some flags replaced; True: no value, None: without this flag."""
    if script == "oneshot.py":
        good = {"weight": "pre", "model": "glue", "rate": 0.5}
        good["model_name_or_path"] = inputs / "bert"
    else:
        good = {
            "task_name": "SST-2",
            "data_dir": inputs / "SST-2",
            "model_name_or_path": inputs / "bert2",
            "do_train": True,
            "do_eval": True,
            "do_lower_case": True,
            "max_seq_length": 32,
            "per_gpu_train_batch_size": 8,
            "max_steps": 4,
            "no_cuda": True,
        }
    if script == "glue_trans.py":
        good["dir"] = "pre"
    pairs = [(f"--{name}", value) for name, value in {**good, **given}.items() if value is not None]
    return [word for name, value in pairs for word in ([name] if value is True else [name, value])]


def assert_refused(ended: Ended, script, *parts):
    """Exit code 2 and one line on stderr that has all the parts; the line."""
    assert ended.code == 2, (ended.code, ended.err)
    assert ended.err.count("\n") == 1 and ended.err.endswith("\n"), ended.err
    (line,) = ended.errors()
    assert line.startswith(f"{script}: error: ")
    for part in parts:
        assert str(part) in line, (part, line)
    return line


def content(folder):
    """What is in a folder, byte for byte; None if there is none."""
    if not folder.exists():
        return None
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def check(start, inputs, tmp_path, script, parts, **given):
    """The command is refused, and changes neither an absent output folder nor a finished run's."""
    full = tmp_path / "full"
    full.mkdir()
    (full / "run.json").write_text(json.dumps({"arguments": {}, "finished": True}))
    (full / "model.safetensors").write_text("precious")
    for out, overwrite in ((tmp_path / "deep" / "out", None), (full, True)):
        if overwrite and script != "oneshot.py":
            given |= {"overwrite_output_dir": True}
        before = content(out)
        ended = start(script, *flags(inputs, script, output_dir=out, **given), cwd=tmp_path)
        line = assert_refused(ended, script, *parts)
        assert content(out) == before
    assert not (tmp_path / "deep").exists()
    return line


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
