"""S3's workflow by a script of curl alone, against a whole service, for both modes; and against broken services."""

import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import matplotlib as mpl
import pytest
from tests.conftest_up import Up, free_port

SCRIPT = Path(__file__).parents[2] / "tools" / "try_layered_images.sh"
PHOTO = Path(mpl.get_data_path(), "sample_data", "grace_hopper.jpg")
RUN_S = 90.0


def tried(url: str, photo: Path = PHOTO) -> "subprocess.CompletedProcess[str]":
    command = ["sh", str(SCRIPT), str(photo), url]
    return subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False)


def test_the_whole_workflow_for_both_modes(running: Up) -> None:
    done = tried(str(running.client.base_url))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "all is well"
    assert len([line for line in done.stdout.splitlines() if line.startswith("ok ")]) == 7
    assert done.stderr == ""


def test_what_is_no_picture_is_noticed(running: Up, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("no picture")
    done = tried(str(running.client.base_url), tmp_path / "photo.jpg")
    assert done.returncode == 1
    assert done.stderr.startswith("failed: upload: 400 instead of 200")


class Agreeable(BaseHTTPRequestHandler):
    """Says yes to everything, and shows nothing for it."""

    def do_GET(self) -> None:
        body = b'{"docs": "/docs", "status": "healthy", "painterly": ["oil"], "filename": "x.jpg", "id": "1"}'
        self.send_response(201 if self.command == "POST" and self.path == "/api/jobs" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Nobody listens."""


@pytest.fixture
def agreeable() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Agreeable) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_service_that_only_says_yes_is_noticed(agreeable: str) -> None:
    done = tried(agreeable)
    assert done.returncode == 1
    assert done.stderr.startswith("failed: photo-realistic:"), done.stderr


def test_a_service_that_is_not_there_is_noticed() -> None:
    done = tried(f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert done.stderr.startswith("failed: API info: no answer")
