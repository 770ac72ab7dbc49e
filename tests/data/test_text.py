"""A text of any size: tokenized in pieces as if it were whole; caches that are always valid."""

import contextlib
import errno
import io
import multiprocessing
import os
import resource
import signal
import subprocess
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from utils.data import text
from utils.data.text import Text, load_blocks
from utils.errors import UserError
from utils.modeling.packing import pack

# Text on which cutting goes wrong: long words, accents (composed and combining), characters of 2 to
# 4 bytes, CJK and Hangul, emoji joined by U+200D, control characters within words, every kind of
# white space, special tokens in text.
SCRAPS = [
    *"abcxyz ABC 019 \n\r\t.,!?-[]#'",
    *("\r\n", "  ", "abcabcabc", "x" * 120, "caf\u00e9", "cafe\u0301", "\u0301", "a\u0323\u0301"),
    *("\u00df", "\u0130", "\u03a3", "\u4e2d\u6587", "\uf900", "\uac01", "\u1100\u1161", "\u3002"),
    *("\U0001f600", "\U0001f468\u200d\U0001f469", "\U0001d400", "\x00", "abc\x0babc", "\x0c"),
    *("\x1c", "\x85", "\xa0", "\u200b", "\u2028", "\u3000", "\ufeff", "\ufffd", "[MASK]", "[CLS]"),
    *("[SEP]", "[mask]", "##a"),
]
NASTY = " ".join(SCRAPS) + "".join(SCRAPS) + "\n" + "".join(reversed(SCRAPS))
VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cafe", "\u4e2d", "\u6587", "\u3002"),
    *("\U0001f600", *"ABCcafexyzb019.,!?-[]#'\u03c3\u03a3\u00e9"),
    *(f"##{c}" for c in "ABCcafexyzb019\u0301\u0323\u00e9"),
]


def tokenizer_of(folder, vocabulary=VOCABULARY, lower=True) -> BertTokenizerFast:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return BertTokenizerFast.from_pretrained(folder, do_lower_case=lower)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Two that make different WordPieces of one text."""
    folder = tmp_path_factory.mktemp("tokenizers")
    cased = tokenizer_of(folder / "cased", VOCABULARY[:-3], lower=False)
    return tokenizer_of(folder / "uncased"), cased


@pytest.fixture
def tokenizer(tokenizers):
    return tokenizers[0]


@pytest.fixture
def corpus(tmp_path):
    """A text of 40 lines, cut into 60 pieces or more."""
    path = tmp_path / "en[1].train"
    lines = [f"abc caf\u00e9 {'x' * (n % 7)} {n}.\n" for n in range(40)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(text, "PIECE_BYTES", 8)


def load(path, tokenizer, block_size=16, by_lines=False, **options):
    return load_blocks(Text(path, tokenizer, by_lines), block_size, **options)


def whole_ids(tokenizer, string: str) -> list[int]:
    return tokenizer(string, add_special_tokens=False, verbose=False)["input_ids"]


def ids_of(tokenizer, path) -> list[int]:
    return whole_ids(tokenizer, path.read_text(encoding="utf-8"))


def pieces_of(string: str, breaks=text.WORD_BREAKS) -> list[str]:
    file = io.BytesIO(string.encode())
    chunks = iter(lambda: file.read(text.PIECE_BYTES), b"")
    return [piece.decode() for _, piece in text.cut_pieces(chunks, breaks, "text")]


def rows_of(blocks, numbers=None) -> list[list[int]]:
    numbers = np.arange(len(blocks)) if numbers is None else np.array(numbers)
    rows = blocks.gather(numbers)
    return [rows[n][0].tolist() for n in range(len(rows))]


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def cache_of(corpus):
    (cache,) = (path for path in corpus.parent.iterdir() if path.suffix == ".ids")
    return cache


# ---- the same WordPieces as of the whole text


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 4, 5, 7, 8, 11, 16, 31, 64, 1000, 1 << 15])
@pytest.mark.parametrize("which", [0, 1])
def test_pieces_give_the_wordpieces_of_the_whole(
    tokenizers, tmp_path, monkeypatch, piece_bytes, which
):
    monkeypatch.setattr(text, "PIECE_BYTES", piece_bytes)
    path = tmp_path / "text"
    path.write_bytes(NASTY.encode())
    blocks = load(path, tokenizers[which])
    assert blocks.ids.tolist() == whole_ids(tokenizers[which], NASTY)


@settings(max_examples=150, deadline=None)
@given(
    scraps=st.lists(st.one_of(st.sampled_from(SCRAPS), st.text(max_size=4)), max_size=60),
    piece_bytes=st.integers(1, 40),
)
def test_any_text_gives_the_wordpieces_of_the_whole(tokenizers, scraps, piece_bytes):
    string = "".join(scraps)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(text, "PIECE_BYTES", piece_bytes)
        pieces = pieces_of(string)
    assert "".join(pieces) == string
    for tokenizer in tokenizers:
        found = [i for piece in pieces for i in whole_ids(tokenizer, piece)]
        assert found == whole_ids(tokenizer, string)


def test_a_cut_elsewhere_would_be_noticed(tokenizer):
    """The texts above reveal bad cuts: a cut at a vertical tab changes the WordPieces."""
    pieces = pieces_of(NASTY, (b" ", b"\x0b"))
    assert len(pieces) > 20
    found = [i for piece in pieces for i in whole_ids(tokenizer, piece)]
    assert found != whole_ids(tokenizer, NASTY)


@pytest.mark.parametrize("name", ["en.train", "en.valid"])
def test_golden_text_as_a_whole(golden, tmp_path, monkeypatch, name):
    monkeypatch.setattr(text, "PIECE_BYTES", 100)
    tokenizer = BertTokenizerFast.from_pretrained(golden / "assets/model")
    path = golden / "assets/text" / name
    assert load(path, tokenizer, 128, cache_dir=tmp_path).ids.tolist() == ids_of(tokenizer, path)


def test_wikipedia_as_a_whole(real_data, tmp_path, monkeypatch):
    monkeypatch.setattr(text, "PIECE_BYTES", 5000)
    path = real_data / "wikitext-2-raw/wiki.valid.raw"
    tokenizer = BertTokenizerFast.from_pretrained(real_data / "bert-uncased-vocab")
    blocks = load(path, tokenizer, 512, cache_dir=tmp_path)
    assert blocks.ids.tolist() == ids_of(tokenizer, path)
    assert len(blocks) == len(blocks.ids) // 510


# ---- blocks and lines


def test_blocks_are_those_of_the_released_code(tokenizer, corpus):
    blocks, ids = load(corpus, tokenizer), ids_of(tokenizer, corpus)
    expected = [[2, *ids[i : i + 14], 3] for i in range(0, len(ids) - 14 + 1, 14)]
    assert len(ids) % 14 and len(blocks) == len(expected)
    assert rows_of(blocks) == expected
    assert rows_of(blocks, [3, 0, 3]) == [expected[3], expected[0], expected[3]]
    gathered = blocks.gather(np.array([2, 1]))
    assert gathered.ids.tolist() == expected[2] + expected[1] and not gathered.types.any()
    assert gathered.ids.dtype == np.int32
    assert pack(gathered, np.array([1])).ids.tolist() == [expected[1]]
    for outside in ([-1], [0, len(blocks)]):
        with pytest.raises(IndexError):
            blocks.gather(np.array(outside))


@pytest.mark.parametrize("piece_bytes", [1, 3, 8, 1000])
def test_line_by_line_each_line_is_a_row(tokenizer, tmp_path, monkeypatch, piece_bytes):
    monkeypatch.setattr(text, "PIECE_BYTES", piece_bytes)
    path = tmp_path / "text"
    string = f"\n  \t\nabc caf\u00e9\r\nxyz\rabc\u2028b {'a ' * 30}\n\x00\n\n0.{NASTY}"
    path.write_bytes(string.encode())
    blocks = load(path, tokenizer, 12, by_lines=True)
    lines = [line for line in string.splitlines() if line.strip()]
    expected = tokenizer(lines, truncation=True, max_length=12)["input_ids"]
    assert rows_of(blocks) == expected
    assert max(map(len, expected)) == 12 and min(map(len, expected)) == 2
    packed = pack(blocks.gather(np.array([0, 2, 3])), np.arange(3))
    assert packed.lengths.tolist() == [len(expected[n]) for n in (0, 2, 3)]


def test_lines_and_stream_have_their_own_caches_for_all_block_sizes(tokenizer, corpus, monkeypatch):
    load(corpus, tokenizer)
    load(corpus, tokenizer, by_lines=True)
    monkeypatch.setattr(Text, "tokenize", None)  # from here on, nothing is tokenized
    assert len(rows_of(load(corpus, tokenizer, 30), [0])[0]) == 30
    assert len(rows_of(load(corpus, tokenizer, 4, by_lines=True), [5])[0]) == 4


def test_ids_are_as_wide_as_the_vocabulary_needs(tmp_path, corpus):
    most = [*VOCABULARY, *(f"w{n}" for n in range(65535 - len(VOCABULARY))), "abc"]
    fits, too_many = (
        tokenizer_of(tmp_path / "fits", most),
        tokenizer_of(tmp_path / "more", ["<first>", *most]),
    )
    narrow, wide = (load(corpus, each).ids for each in (fits, too_many))
    assert (narrow.dtype, wide.dtype) == (np.uint16, np.int32)
    assert (narrow.max(), wide.max()) == (65535, 65536)
    assert wide.tolist() == (narrow.astype(int) + 1).tolist()


# ---- killed builds, and several at once


def at_piece(monkeypatch, action) -> list[int]:
    """Call action(number) before each piece is written; return the list of the numbers so far."""
    numbers, tokenize = [], Text.tokenize

    def counted(self):
        for number, piece in enumerate(tokenize(self)):
            numbers.append(number)
            action(number)
            yield piece

    monkeypatch.setattr(Text, "tokenize", counted)
    return numbers


def forked(function) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    return process


@pytest.mark.parametrize("by_lines", [False, True])
@pytest.mark.parametrize("killed_at", [0, 20])
def test_a_killed_build_leaves_nothing_that_disturbs_the_next(
    tokenizer, corpus, tmp_path, monkeypatch, by_lines, killed_at
):
    elsewhere = tmp_path / "elsewhere"
    load(corpus, tokenizer, by_lines=by_lines, cache_dir=elsewhere)

    def kill(number):
        if number == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def build():
        at_piece(monkeypatch, kill)
        load(corpus, tokenizer, by_lines=by_lines)

    process = forked(build)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [name for name in contents(corpus.parent) if name.endswith(".tmp")]
    load(corpus, tokenizer, by_lines=by_lines)
    assert set(contents(corpus.parent)) == {corpus.name, cache_of(corpus).name}
    assert cache_of(corpus).read_bytes() == (elsewhere / cache_of(corpus).name).read_bytes()


def test_of_many_jobs_one_builds_and_the_others_wait(
    tokenizer, corpus, tmp_path, monkeypatch, capfd
):
    barrier = multiprocessing.get_context("fork").Barrier(4)

    def job(number):
        built = at_piece(monkeypatch, lambda _: time.sleep(0.005))
        barrier.wait()
        ids = load(corpus, tokenizer).ids
        np.savez(tmp_path / f"job{number}.npz", ids=ids, built=len(built))

    jobs = [forked(lambda number=number: job(number)) for number in range(4)]
    for each in jobs:
        each.join()
    results = [np.load(tmp_path / f"job{number}.npz") for number in range(4)]
    ids = ids_of(tokenizer, corpus)
    assert all(result["ids"].tolist() == ids for result in results)
    assert sum(result["built"] > 0 for result in results) == 1
    assert capfd.readouterr().err.count("waiting for another job") == 3
    assert not [name for name in contents(corpus.parent) if name.startswith(".")]


def test_a_waiting_job_takes_over_from_a_killed_one(tokenizer, corpus, monkeypatch):
    ready, waiting = os.pipe()

    def hold():
        def stop(number):
            if number == 20:
                os.write(waiting, b"x")
                time.sleep(60)

        at_piece(monkeypatch, stop)
        load(corpus, tokenizer)

    holder = forked(hold)
    os.read(ready, 1)
    monkeypatch.setattr(text.files, "warn", lambda message: holder.kill())  # when it has to wait
    assert load(corpus, tokenizer).ids.tolist() == ids_of(tokenizer, corpus)
    holder.join()
    assert holder.exitcode == -signal.SIGKILL
    assert set(contents(corpus.parent)) == {corpus.name, cache_of(corpus).name}


def test_without_locks_a_job_builds_for_itself(tokenizer, corpus, monkeypatch, capsys):
    def no_locks(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    text._warn_once.cache_clear()
    monkeypatch.setattr(text.FileLock, "acquire", no_locks)
    assert load(corpus, tokenizer).ids.tolist() == ids_of(tokenizer, corpus)
    assert "No locks available" in warnings(capsys) and set(contents(corpus.parent)) == {
        corpus.name
    }


# ---- invalid caches


def truncate(path):
    os.truncate(path, path.stat().st_size - 2)


def truncate_within_the_header(path):
    os.truncate(path, 100)


def lengthen(path):
    with open(path, "ab") as file:
        file.write(bytes(8))


def change_a_count(path):
    path.write_bytes(path.read_bytes().replace(b'"ids": ', b'"ids": 1', 1))


def lower_a_count(path):
    """Into a cache of one WordPiece."""
    head, _, rest = path.read_bytes().partition(b'"ids": ')
    digits = len(rest) - len(rest.lstrip(b"0123456789"))
    path.write_bytes(head + b'"ids": ' + b"1".rjust(digits) + rest[digits:])


def warnings(capsys) -> str:
    """Return stderr without the progress bar, which appears on a slow machine."""
    lines = capsys.readouterr().err.split("\n")
    return "\n".join(line.rpartition("\r")[2] for line in lines)


def change_an_id(path):
    content = bytearray(path.read_bytes())
    content[text.HEADER_BYTES + 20] ^= 1
    path.write_bytes(content)


def put_ids_beyond_the_vocabulary(path):
    content = bytearray(path.read_bytes())
    content[text.HEADER_BYTES : text.HEADER_BYTES + 8] = b"\xff" * 8
    path.write_bytes(content)


def change_the_last_start(path):
    path.write_bytes(path.read_bytes()[:-8] + (1 << 40).to_bytes(8, "little"))


def change_the_digest(path):
    path.write_bytes(path.read_bytes().replace(b'"digest": "', b'"digest": "x', 1))


HARMS = [truncate, truncate_within_the_header, lengthen, change_a_count, lower_a_count]
HARMS += [change_an_id, put_ids_beyond_the_vocabulary, change_the_last_start, change_the_digest]


@pytest.mark.parametrize("by_lines", [False, True])
@pytest.mark.parametrize("harm", HARMS)
def test_a_corrupt_cache_is_rebuilt_with_a_warning(tokenizer, corpus, capsys, harm, by_lines):
    load(corpus, tokenizer, by_lines=by_lines)
    cache = cache_of(corpus)
    good = cache.read_bytes()
    assert warnings(capsys) == ""
    harm(cache)
    assert len(load(corpus, tokenizer, by_lines=by_lines)) > 0
    assert cache.read_bytes() == good
    (line,) = warnings(capsys).splitlines()
    assert line.startswith(f"warning: {cache}: corrupt") and line.endswith("rebuilding it")


def test_a_cache_of_another_tokenizer_is_not_used(tokenizers, corpus, capsys):
    expected = [ids_of(each, corpus) for each in tokenizers]
    assert expected[0] != expected[1]
    assert [load(corpus, each).ids.tolist() for each in tokenizers] == expected
    one, other = (path for path in corpus.parent.iterdir() if path.suffix == ".ids")
    one.write_bytes(other.read_bytes())
    assert [load(corpus, each).ids.tolist() for each in tokenizers] == expected
    (line,) = warnings(capsys).splitlines()
    assert str(one) in line and "rebuilding it" in line


def test_a_changed_text_is_read_again(tokenizer, corpus, capsys):
    load(corpus, tokenizer)
    state = corpus.stat()
    content = bytearray(corpus.read_bytes())
    at = content.index(b"abc", len(content) // 3)
    content[at : at + 3] = b"xyz"  # of the same size
    corpus.write_bytes(content)
    os.utime(corpus, ns=(state.st_atime_ns, state.st_mtime_ns))  # and age
    assert load(corpus, tokenizer).ids.tolist() == ids_of(tokenizer, corpus)
    assert "an earlier version of the text; rebuilding it" in warnings(capsys)


def test_a_cache_is_rebuilt_when_asked(tokenizer, corpus, monkeypatch):
    load(corpus, tokenizer)
    numbers = at_piece(monkeypatch, lambda _: None)
    load(corpus, tokenizer)
    assert not numbers
    load(corpus, tokenizer, overwrite_cache=True)
    assert len(numbers) > 60


def test_an_unwritable_folder_gives_one_warning_and_works(
    tokenizer, corpus, tmp_path, monkeypatch, capsys
):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(text.tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "file").touch()
    text._warn_once.cache_clear()
    for _ in range(2):
        blocks = load(corpus, tokenizer, cache_dir=tmp_path / "file" / "folder")
        assert blocks.ids.tolist() == ids_of(tokenizer, corpus)
    assert capsys.readouterr().err.count("cannot be written") == 1
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_reported_and_nothing_is_left(tokenizer, corpus, monkeypatch, number):
    before = contents(corpus.parent)

    def fill(piece):
        if piece == 30:
            raise OSError(number, os.strerror(number))

    at_piece(monkeypatch, fill)
    with pytest.raises(UserError) as raised:
        load(corpus, tokenizer)
    message = str(raised.value)
    assert message.startswith(f"{corpus.parent}: no space") and "--cache_dir" in message
    assert contents(corpus.parent) == before


@pytest.mark.parametrize("limit", [100, text.HEADER_BYTES + 205])
def test_a_file_that_may_not_grow_is_a_full_disk(tokenizer, corpus, limit):
    """Here the operating system itself refuses, in the middle of a write."""
    before, limits = contents(corpus.parent), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(UserError, match="no space for the WordPieces"):
            load(corpus, tokenizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(corpus.parent) == before


def mount(*arguments):
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting needs root and a kernel that allows it: {done.stderr.strip()}")


@pytest.mark.parametrize("free", [0, 300, 8192])
def test_a_disk_that_is_full(tokenizer, corpus, tmp_path, free):
    disk = tmp_path / "disk"
    disk.mkdir()
    corpus.write_bytes(corpus.read_bytes() * 40)
    mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", disk)
    try:
        with contextlib.suppress(OSError), open(disk / "ballast", "wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
        os.truncate(disk / "ballast", (disk / "ballast").stat().st_size - free)
        with pytest.raises(UserError, match=f"{disk}: no space .* --cache_dir"):
            load(corpus, tokenizer, cache_dir=disk)
        assert [path.name for path in disk.iterdir()] == ["ballast"]
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_read_only_folder_gives_one_warning_and_the_same_ids(tokenizer, corpus, capsys):
    folder = corpus.parent
    mount("--bind", folder, folder)
    try:
        mount("-o", "remount,ro,bind", folder)
        text._warn_once.cache_clear()
        for _ in range(2):
            assert load(corpus, tokenizer).ids.tolist() == ids_of(tokenizer, corpus)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
    (line,) = warnings(capsys).splitlines()
    assert line.startswith(f"warning: {folder}: cannot be written (Read-only file system)")


def test_another_error_of_the_disk_is_not_a_full_disk(tokenizer, corpus, monkeypatch):
    before = contents(corpus.parent)

    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    at_piece(monkeypatch, fail)
    with pytest.raises(OSError) as raised:
        load(corpus, tokenizer)
    assert raised.value.errno == errno.EIO and contents(corpus.parent) == before


# ---- bad texts


@pytest.mark.parametrize(
    ("content", "by_lines", "message"),
    [
        (None, False, "no such text file"),
        (b"", False, "is empty"),
        (b"abc abc", False, "has 6 WordPieces, fewer than one block of --block_size 16"),
        (b" \n\t\n", False, "has 0 WordPieces"),
        (b" \n\t\n", True, "has 0 WordPieces"),
        (b"abc " * 40 + b"caf\xe9 abc", False, r"byte 163 \(counted from 0\) is not UTF-8"),
        (b"abc\n" * 40 + b"abc caf\xc3", True, "byte 167 .* is not UTF-8"),
        (b"abc" * 40, False, "no space in .* bytes from byte 0;"),
        (b"abc\n" + b"abc " * 40, True, "no line break in .* bytes from byte 4;"),
    ],
)
def test_bad_texts_are_reported_in_one_line(
    tokenizer, tmp_path, monkeypatch, content, by_lines, message
):
    monkeypatch.setattr(text, "LONGEST_PIECE", 100)
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load(path, tokenizer, by_lines=by_lines)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert not [name for name in contents(tmp_path) if name.startswith(".")]


def test_a_text_that_grows_while_it_is_read(tokenizer, corpus, monkeypatch):
    def grow(number):
        if number == 5:
            with open(corpus, "ab") as file:
                file.write(b"abc ")

    with monkeypatch.context() as patched:
        at_piece(patched, grow)
        with pytest.raises(UserError, match="changed during reading"):
            load(corpus, tokenizer)
    assert set(contents(corpus.parent)) == {corpus.name}
    assert load(corpus, tokenizer).ids.tolist() == ids_of(tokenizer, corpus)
