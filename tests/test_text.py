"""Text of any size: tokenized in pieces as if it were whole; caches that are right whatever happens to them."""

import errno
import fcntl
import io
import multiprocessing
import os
import resource
import signal
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from utils import text, text_cache
from utils.errors import UserError
from utils.rows import pack

# Text on which cutting goes wrong: long words, accents (composed and combining), characters of 2 to 4 bytes, CJK and
# Hangul, emoji joined by U+200D, control characters within words, every kind of white space, special tokens in text.
SCRAPS = [
    *"abcxyz ABC 019 \n\r\t.,!?-[]#'",
    "\r\n",
    "  ",
    "abcabcabc",
    "x" * 120,
    "caf\u00e9",
    "cafe\u0301",
    "\u0301",
    "a\u0323\u0301",
    "\u00df",
    "\u0130",
    "\u03a3",
    "\u4e2d\u6587",
    "\uf900",
    "\uac01",
    "\u1100\u1161",
    "\u3002",
    "\U0001f600",
    "\U0001f468\u200d\U0001f469",
    "\U0001d400",
    "\x00",
    "abc\x0babc",
    "\x0c",
    "\x1c",
    "\x85",
    "\xa0",
    "\u200b",
    "\u2028",
    "\u3000",
    "\ufeff",
    "\ufffd",
    "[MASK]",
    "[CLS]",
    "[SEP]",
    "[mask]",
    "##a",
]
NASTY = " ".join(SCRAPS) + "".join(SCRAPS) + "\n" + "".join(reversed(SCRAPS))
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "cafe",
    "\u4e2d",
    "\u6587",
    "\u3002",
    "\U0001f600",
    *"ABCcafexyzb019.,!?-[]#'\u03c3\u03a3\u00e9",
    *(f"##{c}" for c in "ABCcafexyzb019\u0301\u0323\u00e9"),
]


def tokenizer_of(folder, vocabulary=VOCABULARY, lower=True) -> BertTokenizerFast:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return BertTokenizerFast.from_pretrained(folder, do_lower_case=lower)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Two that make other WordPieces of one text."""
    folder = tmp_path_factory.mktemp("tokenizers")
    return tokenizer_of(folder / "uncased"), tokenizer_of(
        folder / "cased", VOCABULARY[:-3], lower=False
    )


@pytest.fixture
def tokenizer(tokenizers):
    return tokenizers[0]


@pytest.fixture
def corpus(tmp_path):
    """A text of 40 lines, cut into 60 pieces or more."""
    path = tmp_path / "en[1].train"
    path.write_text(
        "".join(f"abc caf\u00e9 {'x' * (n % 7)} {n}.\n" for n in range(40)), encoding="utf-8"
    )
    return path


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(text, "PIECE_BYTES", 8)
    monkeypatch.setattr(text, "RECORD_BYTES", 32)


def whole_ids(tokenizer, string: str) -> list[int]:
    return tokenizer(string, add_special_tokens=False, verbose=False)["input_ids"]


def in_pieces(tokenizer, string: str, piece_bytes: int) -> list[int]:
    pieces = text.cut_pieces(io.BytesIO(string.encode()), 0, piece_bytes, text.WORD_BREAKS)
    return [i for _, piece in pieces for i in whole_ids(tokenizer, piece.decode())]


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ---- the same WordPieces as of the whole text


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 4, 5, 7, 8, 11, 16, 31, 64, 1000, 1 << 15])
@pytest.mark.parametrize("which", [0, 1])
def test_pieces_give_the_wordpieces_of_the_whole(
    tokenizers, tmp_path, monkeypatch, piece_bytes, which
):
    monkeypatch.setattr(text, "PIECE_BYTES", piece_bytes)
    path = tmp_path / "text"
    path.write_bytes(NASTY.encode())
    blocks = text.load_blocks(path, tokenizers[which], 16)
    assert blocks.ids.tolist() == whole_ids(tokenizers[which], NASTY)


@settings(max_examples=150, deadline=None)
@given(
    scraps=st.lists(st.one_of(st.sampled_from(SCRAPS), st.text(max_size=4)), max_size=60),
    piece_bytes=st.integers(1, 40),
)
def test_any_text_gives_the_wordpieces_of_the_whole(tokenizers, scraps, piece_bytes):
    string = "".join(scraps)
    for tokenizer in tokenizers:
        assert in_pieces(tokenizer, string, piece_bytes) == whole_ids(tokenizer, string)


def test_a_cut_elsewhere_would_be_seen(tokenizer):
    """The texts above tell good cuts from bad: cutting behind a vertical tab changes the WordPieces."""
    pieces = [
        piece for _, piece in text.cut_pieces(io.BytesIO(NASTY.encode()), 0, 8, (b" ", b"\x0b"))
    ]
    assert len(pieces) > 20
    assert [i for piece in pieces for i in whole_ids(tokenizer, piece.decode())] != whole_ids(
        tokenizer, NASTY
    )


@pytest.mark.parametrize("name", ["en.train", "en.valid"])
def test_golden_text_as_a_whole(golden, tmp_path, monkeypatch, name):
    monkeypatch.setattr(text, "PIECE_BYTES", 100)
    monkeypatch.setattr(text, "RECORD_BYTES", 5000)
    path, tokenizer = (
        golden / "assets/text" / name,
        BertTokenizerFast.from_pretrained(golden / "assets/model"),
    )
    blocks = text.load_blocks(path, tokenizer, 128, cache_dir=tmp_path)
    assert blocks.ids.tolist() == whole_ids(tokenizer, path.read_text(encoding="utf-8"))


def test_wikipedia_as_a_whole(real_data, tmp_path, monkeypatch):
    monkeypatch.setattr(text, "PIECE_BYTES", 5000)
    monkeypatch.setattr(text, "RECORD_BYTES", 100_000)
    path = real_data / "wikitext-2-raw/wiki.valid.raw"
    tokenizer = BertTokenizerFast.from_pretrained(real_data / "bert-uncased-vocab")
    blocks = text.load_blocks(path, tokenizer, 512, cache_dir=tmp_path)
    assert blocks.ids.tolist() == whole_ids(tokenizer, path.read_text(encoding="utf-8"))
    assert len(blocks) == len(blocks.ids) // 510


def test_the_callers_truncation_and_padding_do_not_matter(tmp_path, corpus):
    tokenizer = tokenizer_of(tmp_path / "own")
    before = text.load_blocks(corpus, tokenizer, 16, overwrite_cache=True).ids.tolist()
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    assert text.load_blocks(corpus, tokenizer, 16, overwrite_cache=True).ids.tolist() == before
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 2


# ---- blocks and lines


def test_blocks_are_those_of_the_papers_code(tokenizer, corpus):
    blocks, ids = (
        text.load_blocks(corpus, tokenizer, 16),
        whole_ids(tokenizer, corpus.read_text(encoding="utf-8")),
    )
    expected = [[2, *ids[i : i + 14], 3] for i in range(0, len(ids) - 14 + 1, 14)]
    assert len(ids) % 14 and len(blocks) == len(expected)
    rows = blocks.rows(np.arange(len(blocks)))
    assert rows.tolist() == expected and rows.dtype == np.int32
    assert blocks.rows(np.array([3, 0, 3])).tolist() == [expected[3], expected[0], expected[3]]
    gathered = blocks.gather(np.array([2, 1]))
    assert gathered.ids.tolist() == expected[2] + expected[1] and not gathered.types.any()
    assert pack(gathered, np.array([1])).ids.tolist() == [expected[1]]
    for outside in ([-1], [0, len(blocks)]):
        with pytest.raises(IndexError):
            blocks.gather(np.array(outside))


@pytest.mark.parametrize("piece_bytes", [1, 3, 8, 1000])
def test_line_by_line_each_line_is_an_example(tokenizer, tmp_path, monkeypatch, piece_bytes):
    monkeypatch.setattr(text, "PIECE_BYTES", piece_bytes)
    path = tmp_path / "text"
    string = f"\n  \t\nabc caf\u00e9\r\nxyz\rabc\u2028b {'a ' * 30}\n\x00\n\n0.{NASTY}"
    path.write_bytes(string.encode())
    blocks = text.load_blocks(path, tokenizer, 12, line_by_line=True)
    lines = [line for line in string.splitlines() if line.strip()]
    expected = tokenizer(lines, truncation=True, max_length=12)["input_ids"]
    assert [row.tolist() for row in blocks.rows(np.arange(len(blocks)))] == expected
    assert max(map(len, expected)) == 12 and min(map(len, expected)) == 2
    packed = pack(blocks.gather(np.array([0, 2, 3])), np.arange(3))
    assert packed.lengths.tolist() == [len(expected[n]) for n in (0, 2, 3)]


def test_lines_and_stream_have_caches_of_their_own_for_all_block_sizes(
    tokenizer, corpus, monkeypatch
):
    text.load_blocks(corpus, tokenizer, 16)
    text.load_blocks(corpus, tokenizer, 16, line_by_line=True)
    monkeypatch.setattr(text._Work, "encode", None)  # from here on nothing is tokenized
    assert text.load_blocks(corpus, tokenizer, 30).rows(np.array([0])).shape == (1, 30)
    assert (
        len(text.load_blocks(corpus, tokenizer, 4, line_by_line=True).rows(np.array([5]))[0]) == 4
    )


def test_ids_are_as_wide_as_the_vocabulary_needs(tmp_path, corpus):
    most = [*VOCABULARY, *(f"w{n}" for n in range(65535 - len(VOCABULARY))), "abc"]
    fits, too_many = (
        tokenizer_of(tmp_path / "fits", most),
        tokenizer_of(tmp_path / "more", ["<first>", *most]),
    )
    narrow, wide = (text.load_blocks(corpus, each, 16).ids for each in (fits, too_many))
    assert (narrow.dtype, wide.dtype) == (np.uint16, np.int32)
    assert (narrow.max(), wide.max()) == (65535, 65536) and wide.tolist() == (
        narrow.astype(int) + 1
    ).tolist()


# ---- builds that are killed, and several at once


def counted(monkeypatch, name: str, then=lambda count: None) -> list:
    """Log the calls of a method of _Work or _Partial; `then(count)` runs before each."""
    owner, calls = (text._Work if name == "encode" else text_cache.Partial), []
    original = getattr(owner, name)

    def logged(*args):
        calls.append(args[1])
        then(len(calls))
        return original(*args)

    monkeypatch.setattr(owner, name, logged)
    return calls


def forked(function) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    return process


@pytest.mark.parametrize("by_lines", [False, True])
@pytest.mark.parametrize("killed_at", [1, 10, 20])
def test_a_killed_build_goes_on_where_it_recorded(
    tokenizer, corpus, tmp_path, monkeypatch, by_lines, killed_at
):
    elsewhere = tmp_path / "elsewhere"
    calls = counted(monkeypatch, "encode")
    expected = text.load_blocks(corpus, tokenizer, 16, by_lines, cache_dir=elsewhere)
    pieces = sorted(calls)

    def kill(count):
        if count == killed_at + 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def build():
        counted(monkeypatch, "append", kill)
        text.load_blocks(corpus, tokenizer, 16, by_lines)

    process = forked(build)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    calls.clear()
    resumed = text.load_blocks(corpus, tokenizer, 16, by_lines)
    # A record follows every 32 bytes of text, at the end of a piece: so much at most is done again.
    assert pieces[killed_at] - 32 - max(np.diff(pieces)) < min(calls) <= pieces[killed_at]
    rows = np.arange(len(expected))
    assert resumed.gather(rows).ids.tolist() == expected.gather(rows).ids.tolist()
    (name,) = contents(elsewhere)
    assert (corpus.parent / name).read_bytes() == (elsewhere / name).read_bytes()
    assert set(contents(corpus.parent)) == {corpus.name, name}


def test_a_build_of_another_text_is_not_gone_on_with(tokenizer, corpus, monkeypatch):
    def stop(count):
        if count == 30:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        counted(patched, "append", stop)
        text.load_blocks(corpus, tokenizer, 16)
    assert any(name.endswith(".partial") for name in contents(corpus.parent))
    corpus.write_text("xyz " * 5, encoding="utf-8")
    assert text.load_blocks(corpus, tokenizer, 16).ids.tolist() == whole_ids(tokenizer, "xyz " * 5)
    monkeypatch.setattr(text._Work, "encode", None)
    assert (
        len(text.load_blocks(corpus, tokenizer, 16)) == 1
    )  # and nothing of the other text is left in the cache


def test_of_many_jobs_one_builds_and_the_others_wait(
    tokenizer, corpus, tmp_path, monkeypatch, capfd
):
    counted(monkeypatch, "append", lambda count: time.sleep(0.005))
    barrier = multiprocessing.get_context("fork").Barrier(4)

    def job(number):
        built = counted(monkeypatch, "encode")
        barrier.wait()
        ids = text.load_blocks(corpus, tokenizer, 16).ids
        np.savez(tmp_path / f"job{number}.npz", ids=ids, built=len(built))

    jobs = [forked(lambda number=number: job(number)) for number in range(4)]
    for each in jobs:
        each.join()
    results = [np.load(tmp_path / f"job{number}.npz") for number in range(4)]
    ids = whole_ids(tokenizer, corpus.read_text(encoding="utf-8"))
    assert all(result["ids"].tolist() == ids for result in results)
    assert sum(result["built"] > 0 for result in results) == 1
    assert capfd.readouterr().err.count("waiting for another job") == 3
    assert not [name for name in contents(corpus.parent) if name.endswith((".partial", ".starts"))]


def test_a_waiting_job_takes_over_from_a_killed_one(tokenizer, corpus, monkeypatch):
    ready, waiting = os.pipe()

    def hold():
        def stop(count):
            if count == 20:
                os.write(waiting, b"x")
                time.sleep(60)

        counted(monkeypatch, "append", stop)
        text.load_blocks(corpus, tokenizer, 16)

    holder = forked(hold)
    os.read(ready, 1)
    calls = counted(monkeypatch, "encode")
    monkeypatch.setattr(
        text, "print", lambda *args, **kwargs: holder.kill(), raising=False
    )  # when told to wait
    blocks = text.load_blocks(corpus, tokenizer, 16)
    assert (
        blocks.ids.tolist() == whole_ids(tokenizer, corpus.read_text(encoding="utf-8"))
        and min(calls) > 0
    )
    holder.join()


def test_a_waiting_job_locks_the_file_that_is_there(tmp_path, monkeypatch):
    """Not the one that the other job has renamed meanwhile: else a third job could build at the same place."""
    partial, waits, claimed, leave = tmp_path / "partial", *(threading.Event() for _ in range(3))
    monkeypatch.setattr(text, "print", lambda *args, **kwargs: waits.set(), raising=False)

    def wait():
        with text._claimed(partial):
            claimed.set()
            leave.wait(10)

    waiter = threading.Thread(target=wait)
    with text._claimed(partial):
        waiter.start()
        assert waits.wait(10)
        partial.rename(tmp_path / "cache")
    assert claimed.wait(10)
    with open(partial, "ab") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    leave.set()
    waiter.join()


def test_without_locks_each_job_builds_for_itself(tokenizer, corpus, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(text.fcntl, "flock", no_locks)
    blocks = text.load_blocks(corpus, tokenizer, 16)
    assert blocks.ids.tolist() == whole_ids(tokenizer, corpus.read_text(encoding="utf-8"))
    assert len(list(corpus.parent.iterdir())) == 2  # the text and its cache
    monkeypatch.setattr(text._Work, "encode", None)
    assert len(text.load_blocks(corpus, tokenizer, 16)) == len(blocks)


# ---- caches that do not fit


def cut(path):
    os.truncate(path, path.stat().st_size - 2)


def cut_within_the_header(path):
    os.truncate(path, 100)


def lengthen(path):
    with open(path, "ab") as file:
        file.write(bytes(8))


def flip_a_count(path):
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"ids": ', b'"ids": 1', 1))


def unfinish(path):
    path.write_bytes(path.read_bytes().replace(b'"complete": 1', b'"complete": 0', 1))


def said(capsys):
    """stderr without the progress bar, which a slow machine gets to see."""
    return "\n".join(line.rpartition("\r")[2] for line in capsys.readouterr().err.split("\n"))


@pytest.mark.parametrize("by_lines", [False, True])
@pytest.mark.parametrize("harm", [cut, cut_within_the_header, lengthen, flip_a_count, unfinish])
def test_a_damaged_cache_is_built_anew_and_said_so(tokenizer, corpus, capsys, harm, by_lines):
    text.load_blocks(corpus, tokenizer, 16, by_lines)
    (cache,) = (path for path in corpus.parent.iterdir() if path.suffix == ".ids")
    good = cache.read_bytes()
    assert said(capsys) == ""
    harm(cache)
    blocks = text.load_blocks(corpus, tokenizer, 16, by_lines)
    assert cache.read_bytes() == good and len(blocks) > 0
    assert said(capsys) == f"{cache}: this cache is cut short or damaged; building it anew\n"


def test_a_cache_of_another_tokenizer_is_not_used(tokenizers, corpus, capsys):
    string = corpus.read_text(encoding="utf-8")
    expected = [whole_ids(each, string) for each in tokenizers]
    assert expected[0] != expected[1]
    found = [text.load_blocks(corpus, each, 16).ids.tolist() for each in tokenizers]
    assert found == expected
    lines = said(capsys).splitlines()
    assert len(lines) == 1 and "is of another tokenizer; building en[1].train." in lines[0]
    one, other = (path for path in corpus.parent.iterdir() if path.suffix == ".ids")
    one.write_bytes(other.read_bytes())
    assert [text.load_blocks(corpus, each, 16).ids.tolist() for each in tokenizers] == expected
    assert said(capsys) == f"{one}: this cache is of another tokenizer; building it anew\n"


def test_a_changed_text_is_read_again(tokenizer, corpus, capsys):
    text.load_blocks(corpus, tokenizer, 16)
    state = corpus.stat()
    corpus.write_bytes(corpus.read_bytes().replace(b"abc", b"xyz"))  # as long as before
    os.utime(corpus, ns=(state.st_atime_ns, state.st_mtime_ns))  # and as old: the samples tell
    blocks = text.load_blocks(corpus, tokenizer, 16)
    assert blocks.ids.tolist() == whole_ids(tokenizer, corpus.read_text(encoding="utf-8"))
    assert "is of an earlier state of the text; building it anew" in capsys.readouterr().err


def test_a_cache_is_built_anew_when_asked(tokenizer, corpus, monkeypatch):
    text.load_blocks(corpus, tokenizer, 16)
    calls = counted(monkeypatch, "encode")
    text.load_blocks(corpus, tokenizer, 16)
    assert not calls
    text.load_blocks(corpus, tokenizer, 16, overwrite_cache=True)
    assert min(calls) == 0 and len(calls) > 60


def test_where_nothing_can_be_written_it_warns_once_and_works(
    tokenizer, corpus, tmp_path, monkeypatch, capsys
):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(text.tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "file").touch()
    for _ in range(2):
        blocks = text.load_blocks(corpus, tokenizer, 16, cache_dir=tmp_path / "file" / "folder")
        assert blocks.ids.tolist() == whole_ids(tokenizer, corpus.read_text(encoding="utf-8"))
    assert capsys.readouterr().err.count("cannot be written") == 1
    assert not list((tmp_path / "scratch").iterdir())


def test_a_full_disk_is_told_and_nothing_is_left(tokenizer, corpus, monkeypatch):
    before, write, calls = contents(corpus.parent), text_cache.write, []

    def write_until_full(file, data):
        calls.append(len(data))
        if len(calls) > 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, data)

    with monkeypatch.context() as patched, pytest.raises(UserError) as told:
        patched.setattr(text_cache, "write", write_until_full)
        text.load_blocks(corpus, tokenizer, 16)
    assert contents(corpus.parent) == before
    text.load_blocks(corpus, tokenizer, 16)
    (size,) = (path.stat().st_size for path in corpus.parent.iterdir() if path.suffix == ".ids")
    needed = int(str(told.value).split("about ")[1].split(" bytes needed")[0].replace(",", ""))
    assert abs(needed - size) < 100 and "--cache_dir" in str(told.value)


def test_what_the_system_writes_in_parts_is_written_whole():
    class Stingy(io.BytesIO):
        def write(self, data):
            return super().write(data[:3])

    file = Stingy()
    text_cache.write(file, b"0123456789")
    assert file.getvalue() == b"0123456789"


def test_a_file_that_may_not_grow_is_no_room_either(tokenizer, corpus):
    """The operating system itself refuses here, in the middle of a write."""
    before, limits = contents(corpus.parent), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (text_cache.HEADER_BYTES + 205, limits[1]))
    try:
        with pytest.raises(UserError, match="no room for the WordPieces"):
            text.load_blocks(corpus, tokenizer, 16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(corpus.parent) == before


# ---- texts that are no texts


@pytest.mark.parametrize(
    "content, block_size, by_lines, told",
    [
        (None, 16, False, "no such text file"),
        (b"", 16, False, "is empty"),
        (
            b"abc abc",
            16,
            False,
            r"has 6 WordPieces, less than one block of --block_size 16 \(14 WordPieces, \[CLS\]",
        ),
        (b" \n\t\n", 16, False, "has 0 WordPieces"),
        (b" \n\t\n", 16, True, "every line is blank"),
        (b"abc " * 40 + b"caf\xe9 abc", 16, False, r"byte 163 \(the first is 0\) is not UTF-8"),
        (b"abc\n" * 40 + b"abc caf\xc3", 16, True, "byte 167 .* is not UTF-8"),
        (b"abc", 2, False, "--block_size 2: must be at least 3"),
        (b"abc" * 40, 16, False, "no space in .* bytes from byte 0 on"),
        (b"abc\n" + b"abc " * 40, 16, True, "no line break in .* bytes from byte 4 on"),
    ],
)
def test_bad_texts_are_told_in_one_line(
    tokenizer, tmp_path, monkeypatch, content, block_size, by_lines, told
):
    monkeypatch.setattr(text, "LONGEST_PIECE", 100)
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=told) as error:
        text.load_blocks(path, tokenizer, block_size, by_lines)
    assert "\n" not in str(error.value) and (str(path) in str(error.value) or block_size == 2)
    assert not [name for name in contents(tmp_path) if name.startswith(".")]


def test_a_text_that_grows_while_it_is_read(tokenizer, corpus, monkeypatch):
    def grow(count):
        with open(corpus, "ab") as file:
            file.write(b"abc ")

    counted(monkeypatch, "finish")
    with (
        monkeypatch.context() as patched,
        pytest.raises(UserError, match="changed while it was read"),
    ):
        counted(patched, "append", lambda count: grow(count) if count == 5 else None)
        text.load_blocks(corpus, tokenizer, 16)
    assert set(contents(corpus.parent)) == {corpus.name}
    assert len(text.load_blocks(corpus, tokenizer, 16).ids) == len(
        whole_ids(tokenizer, corpus.read_text("utf-8"))
    )
