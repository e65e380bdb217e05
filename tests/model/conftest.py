"""A hub on this machine: the real client of huggingface_hub against a real HTTP server."""

import hashlib
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """What the client needs of huggingface.co: /{repo}/resolve/{revision}/{file} with its headers and byte ranges."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}  # "owner/model/file": content
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, range
        self.cut_once_at: int | None = None  # bytes after which the next download loses its connection
        self.fault: dict[str, str] = {}  # method: what goes wrong with every such request
        self.after_cut: dict[str, str] = {}  # the same from then on
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self):
        self.shutdown()
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        hub_server, span = self.server, self.headers.get("Range")
        hub_server.requests.append((self.command, self.path, span))
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        repo, revision, file = match.groups() if match else ("", "", "")
        fault = None
        if not any(name.startswith(f"{repo}/") for name in hub_server.files):
            fault = "RepoNotFound"
        elif revision not in ("main", "v1.0", COMMIT):
            fault = "RevisionNotFound"
        elif f"{repo}/{file}" not in hub_server.files:
            fault = "EntryNotFound"
        if fault:
            self.send_response(404)
            self.send_header("X-Error-Code", fault)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.command in hub_server.fault and self.misbehave(hub_server.fault[self.command]):
            return
        content = hub_server.files[f"{repo}/{file}"]
        start = int(re.fullmatch(r"bytes=(\d+)-", span)[1]) if span else 0
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if not body:
            return
        if hub_server.cut_once_at is not None and len(content) > hub_server.cut_once_at:
            self.wfile.write(content[start : hub_server.cut_once_at])
            hub_server.cut_once_at, hub_server.fault = None, hub_server.after_cut
            self.close_connection = True
            return
        self.wfile.write(content[start:])

    def misbehave(self, fault):
        if fault == "silent":
            time.sleep(60)
        elif fault == "endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(1 << 20))
            except OSError:
                pass
        elif fault == "trickle":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.1)
            except OSError:
                pass
        else:
            self.send_response(int(fault))
            self.send_header("Retry-After", "3600")
            self.send_header("Content-Length", "0")
            self.end_headers()
        self.close_connection = True
        return True


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub on this machine, which the client of this process uses with an empty cache."""
    server = Hub()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    yield server
    server.stop()
