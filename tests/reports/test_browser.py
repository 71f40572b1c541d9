"""The page in a real browser: every picture is shown, nothing comes from elsewhere, and it needs no script."""

import json
import re
import shutil
import subprocess
import threading
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from spectral_run.reports.document import Document, FigureOut, TableOut, write

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH")

POLICY = "default-src 'none'; "
# What the browser made of the page, into its title, when all is loaded. Only test copies have a script.
PROBE = """<script>addEventListener("load", () => { document.title = JSON.stringify({
  widths: [...document.images].map(image => image.naturalWidth),
  shown: [...document.images].map(image => image.getBoundingClientRect().width),
  loaded: performance.getEntriesByType("resource").map(entry => entry.name),
  wide: document.documentElement.scrollWidth > innerWidth,
  bold: [...document.querySelectorAll("td b")].map(cell => [cell.textContent, getComputedStyle(cell).fontWeight]),
}); });</script>"""


def open_page(path: Path, profile: Path) -> str:
    """The page's elements as the browser has them after loading."""
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={profile}", "--window-size=900,700", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def seen(text: str, tmp_path: Path) -> dict:
    """What the probe saw in a copy of this page."""
    assert POLICY in text
    copy = tmp_path / "copy.html"
    copy.write_text(text.replace(POLICY, POLICY + "script-src 'unsafe-inline'; ").replace("</body>", f"{PROBE}</body>"))
    title = re.search("<title>(.*?)</title>", open_page(copy, tmp_path / "profile"), re.DOTALL)
    return json.loads(unescape(title.group(1)))


@pytest.fixture
def text(tmp_path: Path) -> str:
    figures = []
    for i in range(2):
        figure = Figure(figsize=(4 + 8 * i, 3), dpi=200)
        figure.subplots().plot([0, 1], [1, i])
        figures.append(FigureOut(f"figure{i}", "A line.", figure, "A line"))
    wide = pd.DataFrame([["0.123456789"] * 20] * 3).rename(columns=str)
    table = TableOut("table", "Wide.", wide, wide, frozenset({(1, 2)}))
    write(Document("report", "A report", ("Text.",), (table, *figures)), tmp_path)
    return (tmp_path / "report.html").read_text()


def test_every_picture_is_shown_and_nothing_else_is_loaded(text, tmp_path):
    found = seen(text, tmp_path)
    assert found["widths"] == [800, 2400]
    assert found["shown"][0] == pytest.approx(384 + 2, abs=2)  # 4 inches, and the border
    assert 500 < found["shown"][1] < 900  # 12 inches shrink to the window
    assert all(name.startswith("data:") for name in found["loaded"])
    assert not found["wide"]  # the table scrolls by itself
    assert found["bold"] == [["0.123456789", "700"]]


def test_a_broken_picture_would_be_noticed(text, tmp_path):
    assert seen(text.replace("base64,iVBORw0KGgo", "base64,AAAAAAAAAAA", 1), tmp_path)["widths"] == [0, 2400]


def test_the_page_itself_forbids_to_load_anything(text, tmp_path):
    """A server waits for requests that a page with addresses in it would make; without the policy it gets them."""
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        foreign = f'<img src="{address}/a.png" alt=""><link rel="stylesheet" href="{address}/b.css">'
        text = text.replace("</body>", f"{foreign}</body>")
        without = re.sub("<meta http-equiv=.*?>", "", text)
        for name, content in (("with", text), ("without", without)):
            (tmp_path / f"{name}.html").write_text(content)
            open_page(tmp_path / f"{name}.html", tmp_path / f"profile-{name}")
            assert sorted(set(asked)) == ([] if name == "with" else ["/a.png", "/b.css"])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
