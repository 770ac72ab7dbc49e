"""Fetch GLUE, SQuAD v1.1 and WikiText-2 from their public homes, laid out as the scripts' commands expect them."""

if __name__ == "__main__":
    import _root  # noqa: F401

import argparse
import contextlib
import hashlib
import http.client
import shutil
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from utils import cli, files
from utils.errors import UserError

GLUE = "https://dl.fbaipublicfiles.com/glue/data"
SENTEVAL = "https://dl.fbaipublicfiles.com/senteval/senteval_data"
SQUAD = "https://rajpurkar.github.io/SQuAD-explorer/dataset"
WIKITEXT = "https://huggingface.co/datasets/ggml-org/ci/resolve/main"
DOWNLOADS = ".downloads"  # below the destination: what is not whole yet
CHUNK = 1 << 20
TRIES = 5


@dataclass(frozen=True)
class Remote:
    """A file to fetch, and its known sha256."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """The file's name here."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Dataset:
    """What to fetch for a task, and how that becomes `files` (relative to the destination).

    `unpack`: the fetched files -> file of `files` -> its bytes.
    """

    remotes: tuple[Remote, ...]
    files: tuple[str, ...]
    unpack: Callable[[list[Path]], dict[str, bytes]]


def _zipped(url: str, sha256: str, members: dict[str, str]) -> Dataset:
    """A zip archive; `members`: file here -> name in the archive."""

    def unpack(paths: list[Path]) -> dict[str, bytes]:
        with zipfile.ZipFile(paths[0]) as archive:
            return {file: archive.read(member) for file, member in members.items()}

    return Dataset((Remote(url, sha256),), tuple(members), unpack)


def _glue(
    task: str, sha256: str, archive: str = "", dev: tuple[str, ...] = ("dev.tsv",)
) -> Dataset:
    """A GLUE task. Its archive holds a folder of the task's name."""
    members = {f"glue_data/{task}/{name}": f"{task}/{name}" for name in ("train.tsv", *dev)}
    return _zipped(f"{GLUE}/{archive or task}.zip", sha256, members)


def _plain(url: str, sha256: str, file: str) -> Dataset:
    return Dataset((Remote(url, sha256),), (file,), lambda paths: {file: paths[0].read_bytes()})


def _split_mrpc(paths: list[Path]) -> dict[str, bytes]:
    """GLUE's split of MRPC's training file: the pairs of ids listed are dev; header and byte-order mark stand in both."""
    rows, ids = (path.read_text(encoding="utf-8").split("\n") for path in paths)
    listed = {tuple(line.strip().split("\t")) for line in ids}
    train, dev = [rows[0].rstrip()], [rows[0].rstrip()]
    for row in filter(None, map(str.strip, rows[1:])):
        (dev if tuple(row.split("\t")[1:3]) in listed else train).append(row)
    return {
        f"glue_data/MRPC/{name}.tsv": "".join(f"{row}\n" for row in part).encode()
        for name, part in (("train", train), ("dev", dev))
    }


DATASETS = {
    "CoLA": _glue("CoLA", "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff"),
    "SST-2": _glue("SST-2", "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa"),
    "MRPC": Dataset(
        (
            Remote(
                f"{SENTEVAL}/msr_paraphrase_train.txt",
                "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89",
            ),
            Remote(
                f"{GLUE}/mrpc_dev_ids.tsv",
                "971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7",
            ),
        ),
        ("glue_data/MRPC/train.tsv", "glue_data/MRPC/dev.tsv"),
        _split_mrpc,
    ),
    "STS-B": _glue("STS-B", "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85"),
    "QQP": _glue(
        "QQP",
        "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0",
        archive="QQP-clean",
    ),
    "MNLI": _glue(
        "MNLI",
        "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633",
        dev=("dev_matched.tsv", "dev_mismatched.tsv"),
    ),
    "QNLI": _glue(
        "QNLI", "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5", archive="QNLIv2"
    ),
    "RTE": _glue("RTE", "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee"),
    "WNLI": _glue("WNLI", "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46"),
    "SQuAD-train": _plain(
        f"{SQUAD}/train-v1.1.json",
        "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
        "SQuAD/train-v1.1.json",
    ),
    "SQuAD-dev": _plain(
        f"{SQUAD}/dev-v1.1.json",
        "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
        "SQuAD/dev-v1.1.json",
    ),
    "WikiText-2": _zipped(
        f"{WIKITEXT}/wikitext-2-raw-v1.zip",
        "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11",
        {
            "pretrain_data/en.train": "wikitext-2-raw/wiki.train.raw",
            "pretrain_data/en.valid": "wikitext-2-raw/wiki.valid.raw",
        },
    ),
}  # digests of the archives as the datasets library recorded them in 2020

UNPACKED = {
    "glue_data/CoLA/train.tsv": "cb368ebeb9f27d7ad03720d27ddc95687a311bdb100781a2fe59a5f5b1bc0624",
    "glue_data/CoLA/dev.tsv": "8c013e21dc39957cac37378d87bebe225b694a0d5fe13eded66c2856628833fd",
    "glue_data/MRPC/dev.tsv": "9e8f284788040f7c9ecde2e1b3c07237c756f926bd9ef8548ef5d34b56f69f17",
    "glue_data/RTE/train.tsv": "41e3a9b063433392343fad9e962cf2f58b681c78d8f71592f4186f0837246c5c",
    "glue_data/RTE/dev.tsv": "80230dfa1347282e7b532b06a1004a76a710087541189bf874223ddf0e3819fb",
    "glue_data/SST-2/train.tsv": "48eac26399f8456935f81dd9e3a745c1430adb6c62e233ccfe22db4a0d15d1d1",
    "glue_data/SST-2/dev.tsv": "54a9c12c77e402fc14d6a66a506f24d999f596b0176eb777c972cccc2f9cc4b0",
    "glue_data/STS-B/train.tsv": "41c4d978b6162abdcada7e49a982211954cca5459c228db478af333124b257a2",
    "glue_data/STS-B/dev.tsv": "fe7dc0632a5033562f3cadff991f6e8d9b9b6311861660e78c3c82eb7db67f59",
    "glue_data/WNLI/train.tsv": "9a88e9d54b6861cc796a088e9acf4f5f65064a9ef65ae6fa7a688b28391e5c9a",
    "glue_data/WNLI/dev.tsv": "cba00490596dd14be8cf53b4f53bb744abe3a7b89f81ab210528d80225338ed5",
    "SQuAD/dev-v1.1.json": "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
    "pretrain_data/en.valid": "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7",
}  # digests of the files that the results in RESULTS.md were made with, where they are those of the public archives


class Broken(Exception):
    """A transfer that ended early and can go on where it stopped."""


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(remote: Remote, folder: Path, any_checksum: bool = False, wait: float = 1.0) -> Path:
    """Fetch `remote` into `folder`, resuming an earlier try; `wait`: seconds before the second try.

    Raises UserError if the server cannot be reached, has no such file, breaks off again and again, or sends a file
    with another checksum (unless `any_checksum`).
    """
    whole, part = folder / remote.name, folder / f"{remote.name}.part"
    folder.mkdir(parents=True, exist_ok=True)
    if not whole.exists():
        for attempt in range(TRIES):
            try:
                _transfer(remote, part)
                break
            except Broken as error:
                if attempt == TRIES - 1:
                    raise UserError(
                        f"{remote.url}: {error}, {TRIES} times; what has come is kept in {part}: "
                        "rerun the command to resume"
                    ) from error
                time.sleep(wait * 2**attempt)
        part.replace(whole)
    _verify(remote, whole, any_checksum)
    return whole


def _transfer(remote: Remote, part: Path) -> None:
    """Append the missing bytes to `part`. Raises Broken if the connection ends early, UserError if it is no use."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(
        remote.url, headers={"Range": f"bytes={have}-"} if have else {}
    )
    with _explain_errors(remote.url), urllib.request.urlopen(request, timeout=60) as response:
        if have and response.status != 206:  # the server does not do ranges: from the start
            have = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        with (
            open(part, "r+b" if have else "wb") as file,
            tqdm(
                total=total, initial=have, unit="B", unit_scale=True, desc=remote.name, leave=False
            ) as bar,
        ):
            file.seek(have)
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            if total is not None and file.tell() < total:
                raise Broken(f"the transfer broke off after {file.tell():,} of {total:,} bytes")


@contextlib.contextmanager
def _explain_errors(url: str) -> Iterator[None]:
    """Raise errors of the connection as UserError with a remedy, or Broken if a retry may help."""
    host = urllib.request.urlparse(url).netloc
    try:
        yield
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing; the checksum shows it
            return
        if error.code == 407:
            raise UserError(
                f"{url}: the proxy wants a password; set https_proxy=http://USER:PASSWORD@HOST:PORT"
            ) from error
        if error.code >= 500 or error.code == 429:
            raise Broken(f"the server is busy ({error.code} {error.reason})") from error
        raise UserError(
            f"{url}: the server answers {error.code} {error.reason}; the file may have moved: fetch it in "
            "another way, or name a --mirror that has it"
        ) from error
    except urllib.error.URLError as error:
        raise _unreachable(url, host, error.reason) from error
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise Broken(f"the connection to {host} broke off ({type(error).__name__})") from error


def _unreachable(url: str, host: str, reason) -> Exception:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return UserError(
            f"{url}: the certificate of {host} is not trusted; behind a proxy that opens TLS, name its "
            "certificate in SSL_CERT_FILE"
        )
    if isinstance(reason, socket.gaierror | ConnectionRefusedError):
        return UserError(
            f"{url}: {host} cannot be reached ({reason}); without a network, copy the data from elsewhere; "
            "behind a proxy, set https_proxy=http://HOST:PORT"
        )
    return Broken(f"{host} cannot be reached ({reason})")


def _verify(remote: Remote, path: Path, any_checksum: bool) -> None:
    found = sha256(path)
    if found == remote.sha256:
        return
    if any_checksum:
        print(
            f"warning: {remote.url}: sha256 {found} is not the known one; taken all the same",
            file=sys.stderr,
        )
        return
    with open(path, "rb") as file:
        page = (
            " (it is a web page, perhaps a proxy's)"
            if file.read(64).lstrip().lower().startswith(b"<")
            else ""
        )
    path.unlink()
    raise UserError(
        f"{remote.url}: wrong checksum{page}: sha256 {found}, expected {remote.sha256}; removed: run the "
        "command again, or take it with --any_checksum"
    )


def fetch(name: str, dest: Path, mirror: str | None, any_checksum: bool, wait: float = 1.0) -> bool:
    """Make the files of dataset `name` below `dest`, each whole or not at all; False if they are there already."""
    dataset = DATASETS[name]
    if all((dest / file).exists() for file in dataset.files):
        return False
    remotes = [
        Remote(f"{mirror.rstrip('/')}/{r.name}", r.sha256) if mirror else r for r in dataset.remotes
    ]
    paths = [download(remote, dest / DOWNLOADS, any_checksum, wait) for remote in remotes]
    try:
        contents = dataset.unpack(paths)
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise UserError(
            f"{paths[0]}: not the archive expected ({error}); remove it and run the command again"
        ) from error
    for file, content in contents.items():
        with files.atomic_file(dest / file) as temporary:
            temporary.write_bytes(content)
        known = UNPACKED.get(file)
        if known and sha256(dest / file) != known:
            print(
                f"note: {dest / file} is not byte for byte the file that RESULTS.md was made with",
                file=sys.stderr,
            )
    for path in paths:
        path.unlink()
    return True


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "dest",
        type=Path,
        nargs="?",
        default=Path("."),
        help="folder for glue_data, SQuAD and pretrain_data (default: here, where the README's commands look)",
    )
    add(
        "--only",
        nargs="+",
        choices=list(DATASETS),
        metavar="NAME",
        help=f"fetch these alone, of {', '.join(DATASETS)}",
    )
    add(
        "--mirror",
        metavar="URL",
        help="fetch every file, by its name, from this address instead of its public home",
    )
    add(
        "--any_checksum",
        action="store_true",
        help="take files whose checksum is not the known one, with a warning",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, wait: float = 1.0) -> None:
    """Fetch what is wanted and not there yet."""
    args = parse(argv)
    try:
        for name in args.only or DATASETS:
            new = fetch(name, args.dest, args.mirror, args.any_checksum, wait)
            print(
                f"{name}: {', '.join(DATASETS[name].files)} {'fetched' if new else 'there already'}",
                flush=True,
            )
        shutil.rmtree(args.dest / DOWNLOADS, ignore_errors=True)
    except OSError as error:
        where = error.filename or args.dest
        raise UserError(
            f"{where}: {error.strerror or error}; make room, or choose another folder"
        ) from error


if __name__ == "__main__":
    cli.run(main)
