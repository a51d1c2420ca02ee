"""A loopback server that speaks the Hub's HTTP API to the real `huggingface_hub` client, with switches for faults.

No tests are here: `conftest.py` starts it for those that need a Hub.

It keeps repositories in memory: commits with their files, branches, private and public ones, owners and tokens, LFS
objects that are uploaded before the commit that names them. It checks what the Hub checks (digests of uploads, the
parent of a commit, rights, the metadata of a card), so that a push that the Hub would refuse is refused here.
"""

import base64
import hashlib
import itertools
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".png", ".bin", ".pth", ".parquet")
LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "other", "unknown"}
PIPELINES = {"object-detection", "image-segmentation"}
REFUSED_TOKEN = "Invalid credentials in Authorization header"
REPO = r"/api/(?P<kind>models|datasets)/(?P<repo>[\w.-]+/[\w.-]+)"
FILE = r"/(?:(?P<kind>datasets)/)?(?P<repo>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"


class Cut(Exception):
    """The connection is closed without an answer."""


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class Stored:
    """A file of a commit."""

    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        """The git id, or the SHA-256 of an LFS file: what the Hub gives as ETag."""
        if self.lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repository:
    """Its branches by name, and the files of each commit."""

    owner: str
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Stored]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, Stored], message: str) -> str:
        """Makes the files the new head of a branch, and returns its id."""
        sha = hashlib.sha1(f"{len(self.commits)}{message}{time.time_ns()}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.messages.append(message)
        return sha


@dataclass
class Faults:
    """How often each fault is still to happen; `slow` is the seconds that every request of that kind waits."""

    left: dict[str, int] = field(default_factory=dict)
    slow: dict[str, float] = field(default_factory=dict)

    def take(self, name: str) -> bool:
        """Whether the fault happens now."""
        count = self.left.get(name, 0)
        self.left[name] = max(0, count - 1)
        return count > 0


class HubServer:
    """The server, in a thread of its own between `start` and `stop`.

    `faults.left` counts down: `create_500`, `preupload_500`, `put_500`, `put_403`, `put_507`, `put_cut`,
    `commit_500`, `commit_lost` (done, but nobody hears of it), `commit_race` (somebody else commits first),
    `get_500`, `get_cut` (half a file), `get_flip` (one bit of it). `requests` has a line for each request.
    """

    def __init__(self) -> None:
        self.tokens = {"hf_me": ("me", "write"), "hf_you": ("you", "write"), "hf_read": ("me", "read")}
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.faults = Faults()
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self.numbers = itertools.count(1)

    def start(self) -> "HubServer":
        handler = type("Handler", (_Handler,), {"hub": self})
        self.http = _Server(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def forget(self) -> None:
        """Back to the state of the start."""
        with self.lock:
            self.repositories.clear()
            self.objects.clear()
            self.requests.clear()
            self.faults = Faults()

    def files(self, repo: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """The files of a revision, without `.gitattributes`."""
        with self.lock:
            stored = self.repositories[f"{kind}/{repo}"]
            files = stored.commits[stored.branches.get(revision, revision)]
            return {path: file.content for path, file in files.items() if path != ".gitattributes"}

    def put(self, repo: str, files: dict[str, bytes], revision: str = "main", kind: str = "models") -> str:
        """Commits files without asking anybody: what a hostile owner would do."""
        with self.lock:
            stored = self.repositories.setdefault(f"{kind}/{repo}", Repository(repo.split("/")[0]))
            before = stored.commits.get(stored.branches.get(revision, ""), {})
            new = {path: Stored(content, path.endswith(LFS_SUFFIXES)) for path, content in files.items()}
            return stored.commit(revision, {**before, **new}, "put")

    def count(self, pattern: str) -> int:
        """How many requests match."""
        return sum(bool(re.search(pattern, line)) for line in self.requests)


class _Server(ThreadingHTTPServer):
    """Clients that are killed leave broken connections, which are no news."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self) -> None:
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        path = unquote(address.path) if "/resolve/" not in address.path else address.path
        self.hub.requests.append(f"{self.command} {self.path}")
        self.body = self._read_body()
        try:
            for command, pattern, answer in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in command.split():
                    time.sleep(self.hub.faults.slow.get(answer.__name__, 0))
                    return answer(self, **{name: text for name, text in match.groupdict().items()})
            self._send(404, {"error": f"no such route: {self.command} {path}"})
        except Refused as error:
            headers = {"X-Error-Message": str(error)} | ({"X-Error-Code": error.code} if error.code else {})
            self._send(error.status, {"error": str(error)}, headers)
        except (Cut, BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # --- who asks, and for what ---

    def _user(self) -> tuple[str | None, str]:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            return None, "read"
        if token not in self.hub.tokens:
            raise Refused(401, REFUSED_TOKEN)
        return self.hub.tokens[token]

    def _repository(self, kind: str | None, repo: str, write: bool = False) -> Repository:
        user, role = self._user()
        stored = self.hub.repositories.get(f"{kind or 'models'}/{repo}")
        if stored is None or (stored.private and stored.owner != user):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user is None:
            raise Refused(401, "Unauthorized")
        if write and (stored.owner != user or role != "write"):
            raise Refused(403, "You don't have the rights to write here")
        return stored

    def _files(self, stored: Repository, revision: str) -> tuple[str, dict[str, Stored]]:
        sha = stored.branches.get(unquote(revision), unquote(revision))
        if sha not in stored.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, stored.commits[sha]

    # --- repositories ---

    def harnesses(self) -> None:
        self._send(200, {})

    def whoami(self) -> None:
        user, role = self._user()
        if user is None:
            raise Refused(401, "Unauthorized")
        self._send(200, {"name": user, "type": "user", "auth": {"accessToken": {"role": role}}, "orgs": []})

    def create(self) -> None:
        if self.hub.faults.take("create_500"):
            raise Refused(500, "Internal error")
        asked = json.loads(self.body)
        user, role = self._user()
        if user is None:
            raise Refused(401, "Unauthorized")
        owner = asked.get("organization") or user
        if owner != user or role != "write":
            raise Refused(403, f"You don't have the rights to create a model under {owner}")
        kind, repo = f"{asked.get('type') or 'model'}s", f"{owner}/{asked['name']}"
        url = f"{self.hub.endpoint}/{'' if kind == 'models' else kind + '/'}{repo}"
        with self.hub.lock:
            if f"{kind}/{repo}" in self.hub.repositories:
                return self._send(409, {"error": "You already created this repo", "url": url})
            private = asked.get("private") or asked.get("visibility") == "private"
            stored = self.hub.repositories[f"{kind}/{repo}"] = Repository(owner, bool(private))
            stored.commit("main", {".gitattributes": Stored(b"*.safetensors filter=lfs\n", False)}, "initial commit")
        self._send(200, {"url": url, "name": repo, "id": repo})

    def branch(self, kind: str, repo: str, revision: str) -> None:
        stored = self._repository(kind, repo, write=True)
        if revision in stored.branches:
            raise Refused(409, "Reference already exists")
        stored.branches[revision] = stored.branches["main"]
        self._send(201, {})

    def info(self, kind: str, repo: str, revision: str | None = None) -> None:
        stored = self._repository(kind, repo)
        sha, files = self._files(stored, revision or "main")
        siblings = [{"rfilename": path} for path in files]
        known = {"id": repo, "_id": repo, "sha": sha, "private": stored.private, "siblings": siblings, "tags": []}
        self._send(200, {**known, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "modelId": repo})

    def refs(self, kind: str, repo: str) -> None:
        stored = self._repository(kind, repo)
        heads = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in stored.branches.items()
        ]
        self._send(200, {"branches": heads, "converts": [], "tags": []})

    def tree(self, kind: str, repo: str, revision: str, path: str | None = None) -> None:
        _, files = self._files(self._repository(kind, repo), revision)
        inside = f"{path.strip('/')}/" if path else ""
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        found: dict[str, dict[str, Any]] = {}
        for name, file in files.items():
            rest = name.removeprefix(inside)
            if not name.startswith(inside):
                continue
            if "/" in rest:
                folder = inside + rest.split("/")[0]
                found.setdefault(folder, {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40})
            if "/" not in rest or recursive:
                found[name] = describe(name, file)
        if inside and not found:
            raise Refused(404, "Entry not found", "EntryNotFound")
        self._send(200, list(found.values()))

    def paths_info(self, kind: str, repo: str, revision: str) -> None:
        _, files = self._files(self._repository(kind, repo), revision)
        asked = json.loads(self.body) if self.body.startswith(b"{") else parse_qs(self.body.decode())
        found = [describe(path, files[path]) for path in asked["paths"] if path in files]
        folders = [path for path in asked["paths"] if any(name.startswith(f"{path}/") for name in files)]
        found += [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders]
        self._send(200, found)

    # --- uploads ---

    def validate(self) -> None:
        asked = json.loads(self.body)
        errors = card_faults(asked["content"], asked.get("repoType"))
        if errors and "text/plain" in self.headers.get("Accept", ""):
            return self._send(400, "\n".join(errors).encode())
        self._send(400 if errors else 200, {"errors": [{"message": error} for error in errors], "warnings": []})

    def preupload(self, kind: str, repo: str, revision: str) -> None:
        if self.hub.faults.take("preupload_500"):
            raise Refused(500, "Internal error")
        stored = self._repository(kind, repo, write=not self.query.get("create_pr"))
        _, files = self._files(stored, revision)
        answers = []
        for asked in json.loads(self.body)["files"]:
            mode = "lfs" if asked["path"].endswith(LFS_SUFFIXES) else "regular"
            known = {"oid": files[asked["path"]].oid} if asked["path"] in files else {}
            answers.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        self._send(200, {"files": answers})

    def lfs_batch(self, repo: str, kind: str | None = None) -> None:
        self._repository(kind, repo)
        answers = []
        for asked in json.loads(self.body)["objects"]:
            href = f"{self.hub.endpoint}/lfs/{asked['oid']}"
            actions = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            there = {} if asked["oid"] in self.hub.objects else {"actions": actions}
            answers.append({"oid": asked["oid"], "size": asked["size"], **there})
        self._send(200, {"transfer": "basic", "objects": answers})

    def put_object(self, oid: str) -> None:
        for fault, status in (("put_500", 500), ("put_403", 403), ("put_507", 507)):
            if self.hub.faults.take(fault):
                raise Refused(status, fault)
        if self.hub.faults.take("put_cut"):
            raise Cut
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "The object has another digest")
        self.hub.objects[oid] = self.body
        self._send(200, {})

    def verify_object(self, oid: str) -> None:
        self._send(200 if oid in self.hub.objects else 404, {})

    def commit(self, kind: str, repo: str, revision: str) -> None:
        if self.hub.faults.take("commit_500"):
            raise Refused(500, "Internal error")
        as_pr = bool(self.query.get("create_pr"))
        with self.hub.lock:
            stored = self._repository(kind, repo, write=not as_pr)
            if self.hub.faults.take("commit_race"):
                _, files = self._files(stored, revision)
                stored.commit(revision, {**files, "notes.txt": Stored(b"mine", False)}, "somebody else")
            head, files = self._files(stored, revision)
            header, new = self._apply(dict(files))
            if header.get("parentCommit") not in (None, head):
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
            branch = f"refs/pr/{next(self.hub.numbers)}" if as_pr else revision
            sha = stored.commit(branch, new, header["summary"])
        if self.hub.faults.take("commit_lost"):
            raise Cut
        url = f"{self.hub.endpoint}/{repo}"
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{url}/commit/{sha}"}
        self._send(200, {**answer, "pullRequestUrl": f"{url}/discussions/{branch[8:]}"} if as_pr else answer)

    def _apply(self, files: dict[str, Stored]) -> tuple[dict[str, Any], dict[str, Stored]]:
        """The header of a commit, and the files after it."""
        header: dict[str, Any] = {}
        for line in filter(None, self.body.split(b"\n")):
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                header = value
            elif key == "file":
                files[value["path"]] = Stored(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refused(400, f"The LFS object of {value['path']} was not uploaded")
                files[value["path"]] = Stored(self.hub.objects[value["oid"]], True)
            elif key == "deletedFile":
                if value["path"] not in files:
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
                del files[value["path"]]
        return header, files

    # --- downloads ---

    def resolve(self, repo: str, revision: str, path: str, kind: str | None = None) -> None:
        if self.command == "GET" and self.hub.faults.take("get_500"):
            raise Refused(500, "Internal error")
        sha, files = self._files(self._repository(kind, repo), revision)
        path = unquote(path)
        if path not in files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        file = files[path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{file.oid}"', "Accept-Ranges": "bytes"}
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(len(file.content))}
        content, status = file.content, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        if self.command == "GET" and path.endswith(".safetensors"):
            if self.hub.faults.take("get_flip"):
                content = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
            if self.hub.faults.take("get_cut"):
                return self._send_half(content, headers)
        self._send(status, content, headers)

    def _send_half(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        raise Cut


def describe(path: str, file: Stored) -> dict[str, Any]:
    """A file as the tree routes show it."""
    known = {"type": "file", "path": path, "size": len(file.content), "oid": file.oid if not file.lfs else "0" * 40}
    return {**known, "lfs": {"oid": file.oid, "size": len(file.content), "pointerSize": 134}} if file.lfs else known


def card_faults(content: str, kind: str | None) -> list[str]:
    """What the Hub would not take in the metadata of a card."""
    match = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
    try:
        data = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        return [f"The metadata is no YAML: {error}"]
    if not isinstance(data, dict):
        return ["The metadata is no mapping"]
    if kind == "dataset":
        return []
    faults = []
    if data.get("license") not in LICENSES | {None}:
        faults.append(f'"license" must be one of {sorted(LICENSES)}')
    if data.get("pipeline_tag") not in PIPELINES | {None}:
        faults.append(f'"pipeline_tag" must be one of {sorted(PIPELINES)}')
    if not all(isinstance(tag, str) for tag in data.get("tags", [])):
        faults.append('"tags" must be texts')
    for index, model in enumerate(data.get("model-index", [])):
        if not isinstance(model.get("name"), str):
            faults.append(f'"model-index[{index}].name" is required')
        for result in model.get("results", []):
            needed = {"task": ["type"], "dataset": ["type", "name"]}
            for part, keys in needed.items():
                faults += [
                    f'"{part}.{key}" is required' for key in keys if not isinstance(result.get(part, {}).get(key), str)
                ]
            for metric in result.get("metrics") or [{}]:
                if not isinstance(metric.get("type"), str) or not isinstance(metric.get("value"), int | float):
                    faults.append('"metrics" need a type, and a value that is a number')
    return faults


ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/agent-harnesses", _Handler.harnesses),
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("POST", REPO + r"/branch/(?P<revision>.+)", _Handler.branch),
    ("GET", REPO, _Handler.info),
    ("GET", r"/api/(?P<kind>models|datasets)/(?P<repo>[\w.-]+)", _Handler.info),
    ("GET", REPO + r"/revision/(?P<revision>.+)", _Handler.info),
    ("GET", REPO + r"/refs", _Handler.refs),
    ("GET", REPO + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", _Handler.tree),
    ("POST", REPO + r"/paths-info/(?P<revision>.+)", _Handler.paths_info),
    ("POST", REPO + r"/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", REPO + r"/commit/(?P<revision>.+)", _Handler.commit),
    (
        "POST",
        r"/(?:(?P<kind>datasets)/)?(?P<repo>[\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch",
        _Handler.lfs_batch,
    ),
    ("PUT", r"/lfs/(?P<oid>\w+)", _Handler.put_object),
    ("POST", r"/lfs/(?P<oid>\w+)/verify", _Handler.verify_object),
    ("GET HEAD", FILE, _Handler.resolve),
]
