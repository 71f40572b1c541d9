"""An empty data root, a cache of the session's own, and a file server on this machine."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from spectral_run.datasets.base import DataHome


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def home(tmp_path: Path) -> DataHome:
    return DataHome(tmp_path / "data", download=False)


class FileServer(ThreadingHTTPServer):
    """Serves ``content`` at every path; the switches make it misbehave."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = b""
        self.ranges: list[str | None] = []  # the Range header of every request
        self.honors_ranges = True
        self.stop_after: int | None = None  # bytes of the body before the connection closes ...
        self.hold: threading.Event | None = None  # ... once this is set
        self.url = f"http://127.0.0.1:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        first = 0
        if asked is not None and server.honors_ranges:
            match = re.fullmatch(r"bytes=(\d+)-", asked)
            assert match, asked
            first = int(match[1])
            if first >= len(server.content):
                self.send_error(416)
                return
        body = server.content[first:]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.stop_after is None:
            self.wfile.write(body)
            return
        self.wfile.write(body[: server.stop_after])
        self.wfile.flush()
        if server.hold is not None:
            server.hold.wait(30)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FileServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        if running.hold is not None:
            running.hold.set()
        running.shutdown()
        thread.join()
