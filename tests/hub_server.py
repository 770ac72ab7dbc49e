"""A small server that speaks the Hugging Face Hub's protocol, for tests of downloads and uploads.

with HubServer() as hub:
    hub.add("datasets/org/name", folder)
    subprocess.run(..., env=os.environ | hub.environment(cache))
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

_FILE = re.compile(r"/(.+?)/resolve/([^/]+)/(.+)")
_API = re.compile(
    r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(\w+(?:-\w+)?))?(?:/([^/]+))?(?:/(.*))?"
)


class HubServer:
    """Serves repositories (names as in URLs: "org/model", "datasets/org/name") from memory.

    breaks: ends of the paths of files, the transfer of which breaks off in the middle.
    down: whether it closes every connection without an answer.
    requests: "METHOD path" of each request so far.
    """

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.breaks: set[str] = set()
        self.down = False
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def add(self, name: str, folder: Path) -> None:
        """Serve the files of a folder as the repository `name`."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        self.repositories[name] = files

    def revision(self, name: str) -> str:
        """The commit of a repository: a digest of its files."""
        files = sorted(self.repositories[name].items())
        return hashlib.sha1(b"".join(key.encode() + value for key, value in files)).hexdigest()

    def environment(self, cache: Path, **more: str) -> dict[str, str]:
        """Environment variables that lead the Hugging Face libraries here."""
        return {"HF_HOME": str(cache), "HF_ENDPOINT": self.url, **more}


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        server_hub = hub

    return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: HubServer

    def log_message(self, *args) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.server_hub, unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        if hub.down:
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if found := _FILE.fullmatch(path):
            self._send_file(*found.groups())
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif found := _API.fullmatch(path):
            kind, name, action, _, rest = found.groups()
            name = f"datasets/{name}" if kind == "datasets" else name
            if name not in hub.repositories:
                self._missing("RepoNotFound")
            else:
                getattr(self, f"_{(action or 'info').replace('-', '_')}")(name, rest or "", body)
        else:
            self._missing("EntryNotFound")

    def _send(self, content: bytes, status: int, headers: dict[str, str], missing: int = 0) -> None:
        """Send an answer without its last `missing` bytes."""
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) - missing])

    def _json(self, value) -> None:
        self._send(json.dumps(value).encode(), 200, {"Content-Type": "application/json"})

    def _missing(self, code: str, **headers: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": "not found", **headers}
        self._send(b'{"error": "not found"}', 404, headers)

    def _send_file(self, name: str, revision: str, file: str) -> None:
        hub = self.server_hub
        if name not in hub.repositories:
            return self._missing("RepoNotFound")
        commit = hub.revision(name)
        content = hub.repositories[name].get(file)
        if content is None or revision not in ("main", commit):
            return self._missing("EntryNotFound", **{"X-Repo-Commit": commit})
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit}
        headers["Accept-Ranges"] = "bytes"
        status, wanted = 200, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted:
            start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            status, content = 206, content[start : end + 1]
        if self.command == "GET" and any(file.endswith(end) for end in hub.breaks):
            self._send(content, status, headers, missing=len(content) // 2 + 1)
            self.close_connection = True
            return None
        return self._send(content, status, headers)

    def _info(self, name: str, rest: str, body: bytes) -> None:
        siblings = [{"rfilename": file} for file in self.server_hub.repositories[name]]
        sha, short = self.server_hub.revision(name), name.removeprefix("datasets/")
        common = {"private": False, "downloads": 0, "likes": 0, "tags": [], "gated": False}
        self._json({"id": short, "_id": "1", "sha": sha, "siblings": siblings, **common})

    _revision = _info

    def _tree(self, name: str, rest: str, body: bytes) -> None:
        query = parse_qs(urlsplit(self.path).query)
        recursive = query.get("recursive", [""])[0].lower() in ("true", "1")
        entries = self._entries(name)
        below = [each for each in entries if rest == "" or each["path"].startswith(f"{rest}/")]
        depth = rest.count("/") + 1 if rest else 0
        chosen = [each for each in below if recursive or each["path"].count("/") == depth]
        if rest and not below:
            return self._missing("EntryNotFound")
        return self._json(chosen)

    def _paths_info(self, name: str, rest: str, body: bytes) -> None:
        if "json" in (self.headers.get("Content-Type") or ""):
            paths = json.loads(body)["paths"]
        else:
            paths = parse_qs(body.decode())["paths"]
        self._json([each for each in self._entries(name) if each["path"] in paths])

    def _entries(self, name: str) -> list[dict]:
        """Files and folders of a repository, as the hub lists them."""
        files = self.server_hub.repositories[name]
        folders = {parent.as_posix() for file in files for parent in Path(file).parents} - {"."}
        found = [{"type": "directory", "path": path, "oid": "0", "size": 0} for path in folders]
        for path, content in files.items():
            oid = hashlib.sha1(content).hexdigest()
            found.append({"type": "file", "path": path, "oid": oid, "size": len(content)})
        return sorted(found, key=lambda each: each["path"])

    # ---- uploads

    def _create(self, request: dict) -> None:
        name = request["name"]
        if request.get("organization"):
            name = f"{request['organization']}/{name}"
        self.server_hub.repositories.setdefault(name, {})
        self._json({"url": f"{self.server_hub.url}/{name}", "name": name, "id": name})

    def _preupload(self, name: str, rest: str, body: bytes) -> None:
        files = [
            {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
            for each in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def _commit(self, name: str, rest: str, body: bytes) -> None:
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.server_hub.repositories[name][entry["value"]["path"]] = content
        commit = self.server_hub.revision(name)
        url = f"{self.server_hub.url}/{name}/commit/{commit}"
        self._json({"commitUrl": url, "commitOid": commit, "hookOutput": ""})
