"""Fetching data, against an HTTP server of our own that can break off, lie, refuse and send web pages."""

import hashlib
import io
import re
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from experiments import get_data
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


class Server(ThreadingHTTPServer):
    """Serves `contents` (name -> bytes); `moods` (name -> list) are what happens to the next requests for a file."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents: dict[str, bytes] = {}
        self.moods: dict[str, list] = {}
        self.ranges: list[str | None] = []  # the Range header of every request

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Honours Range; a mood is a status to answer with, ("cut", n) or "no ranges"."""

    def do_GET(self):
        name, wanted = self.path.lstrip("/"), self.headers.get("Range")
        self.server.ranges.append(wanted)
        moods = self.server.moods.get(name, [])
        mood = moods.pop(0) if moods else None
        content = self.server.contents.get(name)
        if isinstance(mood, int) or content is None:
            return self.send_error(mood or 404)
        start = (
            0
            if wanted is None or mood == "no ranges"
            else int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        )
        if start >= len(content) > 0:
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + mood[1] if isinstance(mood, tuple) else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *_):
        """Quiet."""


@pytest.fixture
def server(monkeypatch):
    for name in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


BODY = bytes(range(256)) * 40  # 10,240 bytes


def offered(
    server: Server, content: bytes = BODY, name: str = "file.bin", sha256: str | None = None
) -> get_data.Remote:
    server.contents[name] = content
    return get_data.Remote(
        f"{server.address}/{name}", sha256 or hashlib.sha256(content).hexdigest()
    )


def test_a_whole_transfer(server, tmp_path):
    assert get_data.download(offered(server), tmp_path).read_bytes() == BODY
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


def test_a_broken_transfer_resumes_where_it_stopped(server, tmp_path):
    remote = offered(server)
    server.moods["file.bin"] = [("cut", 4000), ("cut", 1000)]
    assert get_data.download(remote, tmp_path, wait=0).read_bytes() == BODY
    assert server.ranges == [None, "bytes=4000-", "bytes=5000-"]


def test_a_later_run_resumes_too(server, tmp_path):
    remote = offered(server)
    server.moods["file.bin"] = [("cut", 100)] * get_data.TRIES
    with pytest.raises(UserError, match=r"broke off after 500 of 10,240 bytes.*rerun the command"):
        get_data.download(remote, tmp_path, wait=0)
    assert get_data.download(remote, tmp_path, wait=0).read_bytes() == BODY
    assert server.ranges[-1] == "bytes=500-"


def test_a_server_without_ranges_starts_over(server, tmp_path):
    remote = offered(server)
    (tmp_path / "file.bin.part").write_bytes(b"from another world" * 1000)
    server.moods["file.bin"] = ["no ranges"]
    assert get_data.download(remote, tmp_path, wait=0).read_bytes() == BODY


def test_a_part_that_was_whole_already(server, tmp_path):
    remote = offered(server)
    (tmp_path / "file.bin.part").write_bytes(BODY)
    assert get_data.download(remote, tmp_path).read_bytes() == BODY  # the server answers 416


def test_a_busy_server_is_asked_again(server, tmp_path):
    remote = offered(server)
    server.moods["file.bin"] = [503, 429]
    assert get_data.download(remote, tmp_path, wait=0).read_bytes() == BODY


def test_a_wrong_checksum_is_refused_and_removed(server, tmp_path):
    remote = offered(server, sha256="0" * 64)
    with pytest.raises(UserError, match="wrong checksum: sha256 [0-9a-f]{64}, expected 0{64}"):
        get_data.download(remote, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert get_data.download(remote, tmp_path, any_checksum=True).read_bytes() == BODY


def test_a_proxy_s_page_is_recognised(server, tmp_path):
    with pytest.raises(UserError, match="it is a web page, perhaps a proxy's"):
        get_data.download(
            offered(server, b"\n<!DOCTYPE html><html>Log in</html>", sha256="0" * 64), tmp_path
        )


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "404 Not Found; the file may have moved"),
        (407, "the proxy wants"),
        (403, "403 Forbidden"),
    ],
)
def test_refusals_are_reported_with_a_remedy(server, tmp_path, status, message):
    remote = offered(server)
    server.moods["file.bin"] = [status]
    with pytest.raises(UserError, match=message) as caught:
        get_data.download(remote, tmp_path, wait=0)
    assert remote.url in str(caught.value) and len(server.ranges) == 1


def test_no_network_is_reported_with_a_remedy(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="127.0.0.1:[0-9]+ cannot be reached .* set https_proxy"):
        get_data.download(get_data.Remote(f"{server.address}/file.bin", "0" * 64), tmp_path)


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def serve(monkeypatch, server: Server, dataset: str, *contents: bytes) -> None:
    """Let the server have the dataset's files, and their digests be the known ones."""
    known = get_data.DATASETS[dataset]
    remotes = [
        replace(r, sha256=hashlib.sha256(c).hexdigest())
        for r, c in zip(known.remotes, contents, strict=True)
    ]
    server.contents.update({r.name: c for r, c in zip(remotes, contents, strict=True)})
    monkeypatch.setitem(get_data.DATASETS, dataset, replace(known, remotes=tuple(remotes)))


def test_real_rte_is_laid_out_and_its_digest_known(server, tmp_path, monkeypatch, real_data, capfd):
    folder = real_data / "glue_data" / "RTE"
    content = {f"RTE/{name}": (folder / name).read_bytes() for name in ("train.tsv", "dev.tsv")}
    serve(monkeypatch, server, "RTE", zipped(content | {"RTE/test.tsv": b"unused"}))
    get_data.main([str(tmp_path), "--only", "RTE", "--mirror", server.address])
    for name in ("train.tsv", "dev.tsv"):
        assert (tmp_path / "glue_data" / "RTE" / name).read_bytes() == content[f"RTE/{name}"]
    printed = capfd.readouterr()
    assert (
        "RTE: glue_data/RTE/train.tsv, glue_data/RTE/dev.tsv fetched" in printed.out
        and "note:" not in printed.err
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["glue_data"]
    get_data.main([str(tmp_path), "--only", "RTE", "--mirror", server.address])
    assert "there already" in capfd.readouterr().out and len(server.ranges) == 1


def test_files_other_than_those_of_the_results_are_noted(server, tmp_path, monkeypatch, capfd):
    serve(monkeypatch, server, "WNLI", zipped({"WNLI/train.tsv": b"a\n", "WNLI/dev.tsv": b"b\n"}))
    get_data.main([str(tmp_path), "--only", "WNLI", "--mirror", server.address])
    assert "WNLI/train.tsv is not byte for byte the file" in capfd.readouterr().err


def test_mrpc_is_split_by_the_dev_ids(server, tmp_path, monkeypatch, real_data):
    train, dev = (
        (real_data / "glue_data" / "MRPC" / name).read_text(encoding="utf-8")
        for name in ("train.tsv", "dev.tsv")
    )
    header, *rows = dev.rstrip("\n").split("\n")
    ids = "".join("\t".join(row.split("\t")[1:3]) + "\n" for row in rows)
    both = (
        header
        + "\r\n"
        + "".join(f"{row}\r\n" for row in [*rows, *train.rstrip("\n").split("\n")[1:]])
    )
    serve(monkeypatch, server, "MRPC", both.encode(), ids.encode())
    get_data.main([str(tmp_path), "--only", "MRPC", "--mirror", server.address])
    assert (tmp_path / "glue_data" / "MRPC" / "dev.tsv").read_text(encoding="utf-8") == dev
    assert (tmp_path / "glue_data" / "MRPC" / "train.tsv").read_text(encoding="utf-8") == train


def test_an_archive_without_the_file_is_refused_and_nothing_written(server, tmp_path, monkeypatch):
    serve(monkeypatch, server, "CoLA", zipped({"CoLA/train.tsv": b"a\n"}))
    with pytest.raises(UserError, match="not the archive expected .*CoLA/dev.tsv"):
        get_data.main([str(tmp_path), "--only", "CoLA", "--mirror", server.address])
    assert not (tmp_path / "glue_data").exists()


def test_known_digests_are_those_of_the_data_at_hand(real_data):
    for file, known in get_data.UNPACKED.items():
        if file.startswith("glue_data"):
            assert get_data.sha256(real_data / file) == known


def test_every_dataset_has_its_place_and_a_digest():
    owners = [file for dataset in get_data.DATASETS.values() for file in dataset.files]
    assert len(owners) == len(set(owners)) == 23 and set(get_data.UNPACKED) <= set(owners)
    for dataset in get_data.DATASETS.values():
        for remote in dataset.remotes:
            assert remote.url.startswith("https://") and re.fullmatch("[0-9a-f]{64}", remote.sha256)


def test_the_command_ends_in_one_line(server, tmp_path):
    script = str(ROOT / "experiments" / "get_data.py")
    words = [sys.executable, script, str(tmp_path), "--only", "RTE", "--mirror", server.address]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "get_data.py: error:" in done.stderr and "RTE.zip: the server answers 404" in done.stderr
