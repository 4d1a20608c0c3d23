"""A stand-in for the hub on loopback: what huggingface_hub asks of it to make a repository, to upload and to load.

It refuses other tokens than TOKEN, and cards that the hub would refuse (huggingface.co/docs/hub/repositories-licenses).
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_right"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LICENCES = {"apache-2.0", "mit", "openrail++", "creativeml-openrail-m", "cc-by-nc-4.0", "unknown", "other"}
BINARY = (".safetensors", ".png")


@dataclass
class Repository:
    """A model's repository: its files, and whether others see it."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)


class Hub(ThreadingHTTPServer):
    """The server; `repositories` by USER/NAME."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.uploaded: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, token: str = TOKEN, **further: str) -> dict[str, str | None]:
        """Variables for a process to which this is the hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": token,
            "HF_HUB_OFFLINE": None,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            **further,
        }


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub without repositories, for the time of the block."""
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


def complaints(card: str) -> list[str]:
    """What the hub says against a card's header."""
    header = yaml.safe_load(card.split("---")[1])
    found = []
    if header.get("license") not in LICENCES:
        found.append(f'"license" must be one of {sorted(LICENCES)}')
    if (header.get("license") == "other") != ("license_name" in header):
        found.append('"license_name" goes with "license: other"')
    link = header.get("license_link", "LICENSE")
    if link not in ("LICENSE", "LICENSE.md") and not str(link).startswith("https://"):
        found.append('"license_link" must be a URL, LICENSE or LICENSE.md')
    base = header.get("base_model", "a/b")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(base)):
        found.append(f'"base_model" with value "{base}" is not valid: use a model id')
    return found


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: Any) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid credentials in Authorization header"}, HTTPStatus.UNAUTHORIZED)
        path = self.path.split("?")[0]
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            errors = [{"message": text} for text in complaints(json.loads(body)["content"])]
            status = HTTPStatus.BAD_REQUEST if errors else HTTPStatus.OK
            return self._answer({"errors": errors, "warnings": []}, status)
        if path.endswith("/preupload/main"):
            modes = [
                {"path": file["path"], "shouldIgnore": False, "uploadMode": _mode(file["path"])}
                for file in json.loads(body)["files"]
            ]
            return self._answer({"files": modes})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return self._answer({"transfer": "basic", "objects": objects})
        if path.endswith("/commit/main"):
            return self._commit(path, body)
        return self._answer({"error": f"POST {path}"}, HTTPStatus.NOT_FOUND)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.uploaded[oid] = content
        self._answer({})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        found = re.match(r"/(?:api/models/)?([^/]+/[^/?]+)(?:/(resolve|revision|tree)/[^/?]+)?(?:/([^?]+))?", self.path)
        name, kind, file = found.groups() if found else ("", None, None)
        repository = self.server.repositories.get(name)
        if repository is None or (kind == "resolve" and file not in repository.files):
            code = "RepoNotFound" if repository is None else "EntryNotFound"
            return self._answer({"error": code}, HTTPStatus.NOT_FOUND, {"X-Error-Code": code})
        if kind == "resolve":
            content = repository.files[file]
            etag = hashlib.sha256(content).hexdigest()
            return self._send(content, HTTPStatus.OK, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        if kind == "tree":
            return self._answer(
                [{"type": "file", "path": path, "size": len(c), "oid": "0"} for path, c in repository.files.items()]
            )
        files = [{"rfilename": path} for path in repository.files]
        return self._answer({"id": name, "private": repository.private, "sha": COMMIT, "siblings": files})

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        answer = {"url": f"{self.server.url}/{name}"}
        if name in self.server.repositories:
            return self._answer(answer | {"error": "You already created this model repo"}, HTTPStatus.CONFLICT)
        private = wanted.get("private", False) or wanted.get("visibility") == "private"
        self.server.repositories[name] = Repository(private)
        return self._answer(answer)

    def _commit(self, path: str, body: bytes) -> None:
        name = path.removeprefix("/api/models/").removesuffix("/commit/main")
        files = self.server.repositories[name].files
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.uploaded[value["oid"]]
        url = f"{self.server.url}/{name}/commit/{COMMIT}"
        self._answer({"success": True, "commitUrl": url, "commitOid": COMMIT, "hookOutput": ""})

    def _answer(self, content: Any, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, content: bytes, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _mode(path: str) -> str:
    return "lfs" if path.endswith(BINARY) else "regular"
