"""A Hugging Face hub on this machine: the endpoints by which huggingface_hub pushes and downloads a model.

It keeps repositories in memory, checks what the real hub checks (token, privacy, metadata, checksums of large files)
and answers with the real one's status codes and headers.
"""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN, OWNER = "hf_of_the_tester", "tester"


@dataclass
class Repository:
    """Commits, oldest first: identifier, message and files."""

    private: bool
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=lambda: [("0" * 40, "initial", {})])

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit that a revision names, and its files."""
        for commit, _, files in reversed(self.commits):
            if revision in ("main", commit):
                return commit, files
        return None

    def commit(self, message: str, changes: dict[str, bytes]) -> str:
        files = {**self.commits[-1][2], **changes}
        commit = sha1(f"{len(self.commits)}{sorted(changes)}".encode()).hexdigest()
        self.commits.append((commit, message, files))
        return commit


class Hub(ThreadingHTTPServer):
    """The server; `repositories` by name, and the large files that were uploaded, by checksum."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}

    def environment(self, cache: Path) -> dict[str, str]:
        """Variables under which a new process uses this hub, as the tester, with an empty cache of its own."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # large files go by git's LFS protocol instead
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
        }


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


def git_blob(data: bytes) -> str:
    """The identifier of a small file's content."""
    return sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *arguments: Any) -> None:
        """Say nothing on stderr."""

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body, path = self.rfile.read(length), unquote(urlsplit(self.path).path)
        try:
            for methods, pattern, answer in _ROUTES:
                if self.command in methods and (match := re.fullmatch(pattern, path)):
                    answer(self, body, *match.groups())
                    return
            raise _Refused(404, "", f"no endpoint {self.command} {path}")
        except _Refused as error:
            self._send({"error": str(error)}, error.status, {"X-Error-Code": error.code, "X-Error-Message": str(error)})

    def _send(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _require_token(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Refused(401, "", "Invalid username or password.")

    def _repository(self, name: str, revision: str = "main") -> tuple[Repository, str, dict[str, bytes]]:
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            raise _Refused(404 if self.headers.get("Authorization") else 401, "RepoNotFound", "Repository not found")
        found = repository.files(revision)
        if found is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, *found

    def create(self, body: bytes) -> None:
        self._require_token()
        asked = json.loads(body)
        owner = asked["organization"] or OWNER
        if owner != OWNER:
            raise _Refused(403, "", f"You don't have the rights to create a model under the namespace {owner!r}")
        name = f"{owner}/{asked['name']}"
        known = name in self.server.repositories
        self.server.repositories.setdefault(name, Repository(asked.get("visibility") == "private"))
        self._send({"url": f"{self.server.endpoint}/{name}"}, 409 if known else 200)

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        try:
            metadata = yaml.safe_load(content.split("---\n")[1])
            assert isinstance(metadata["tags"], list)
        except (yaml.YAMLError, AssertionError, LookupError) as error:
            self._send({"errors": [{"message": str(error)}], "warnings": []}, 400)
            return
        self._send({"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        self._require_token()
        _, _, files = self._repository(name, revision)
        answers = []
        for file in json.loads(body)["files"]:
            path, present = file["path"], files.get(file["path"])
            large = path.endswith(".safetensors")
            answers.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": None if present is None else sha256(present).hexdigest() if large else git_blob(present),
                }
            )
        self._send({"files": answers})

    def large_batch(self, body: bytes, name: str) -> None:
        self._require_token()
        self._repository(name)
        self._send(
            {
                "transfer": "basic",
                "objects": [
                    {**wanted, "actions": {"upload": {"href": f"{self.server.endpoint}/large/{wanted['oid']}"}}}
                    for wanted in json.loads(body)["objects"]
                ],
            }
        )

    def large_upload(self, body: bytes, checksum: str) -> None:
        if sha256(body).hexdigest() != checksum:
            raise _Refused(400, "", "checksum mismatch")
        self.server.large_files[checksum] = body
        self._send({})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        self._require_token()
        repository, *_ = self._repository(name, revision)
        header, *operations = map(json.loads, body.splitlines())
        changes = {}
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                changes[value["path"]] = self.server.large_files[value["oid"]]
            else:
                raise _Refused(400, "", f"unknown operation {operation['key']}")
        commit = repository.commit(header["value"]["summary"], changes)
        self._send({"commitUrl": f"{self.server.endpoint}/{name}/commit/{commit}", "commitOid": commit})

    def info(self, body: bytes, name: str, revision: str | None = None) -> None:
        repository, commit, files = self._repository(name, revision or "main")
        siblings = [{"rfilename": path} for path in files]
        self._send({"id": name, "sha": commit, "private": repository.private, "tags": [], "siblings": siblings})

    def tree(self, body: bytes, name: str, revision: str) -> None:
        _, _, files = self._repository(name, revision)
        self._send(
            [{"type": "file", "path": path, "size": len(data), "oid": git_blob(data)} for path, data in files.items()]
        )

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        _, commit, files = self._repository(name, revision)
        if path not in files:
            raise _Refused(404, "EntryNotFound", f"{path} does not exist")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{sha256(files[path]).hexdigest()}"'}
        self._send(files[path], headers=headers)


_NAME, _REVISION = r"([\w.-]+/[\w.-]+)", r"([^/]+)"
_ROUTES: list[tuple[set[str], str, Any]] = [
    ({"POST"}, "/api/repos/create", _Handler.create),
    ({"POST"}, "/api/validate-yaml", _Handler.validate),
    ({"POST"}, f"/api/models/{_NAME}/preupload/{_REVISION}", _Handler.preupload),
    ({"POST"}, f"/api/models/{_NAME}/commit/{_REVISION}", _Handler.commit),
    ({"POST"}, rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.large_batch),
    ({"PUT"}, r"/large/(\w+)", _Handler.large_upload),
    ({"GET"}, f"/api/models/{_NAME}", _Handler.info),
    ({"GET"}, f"/api/models/{_NAME}/revision/{_REVISION}", _Handler.info),
    ({"GET"}, f"/api/models/{_NAME}/tree/{_REVISION}", _Handler.tree),
    ({"GET", "HEAD"}, f"/{_NAME}/resolve/{_REVISION}/(.+)", _Handler.resolve),
]
