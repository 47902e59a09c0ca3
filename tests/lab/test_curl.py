"""The stand-in for curl and curl itself, side by side: same words, same exit statuses."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from natf_bsd.lab import services

ROOT = Path(__file__).resolve().parents[2]
CURL = shutil.which("curl")


@pytest.fixture(params=["stand-in", "curl"])
def curl(request: pytest.FixtureRequest) -> list[str]:
    if request.param == "stand-in":
        return [sys.executable, "-m", "natf_bsd.lab.curl", "-sS"]
    if CURL is None:
        pytest.skip("curl is not installed")
    return [CURL, "-sS", "--noproxy", "*"]


def run(command: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


@contextmanager
def listener(answer: bytes | None = None) -> Iterator[str]:
    """The URL of a server that sends `answer` to its one client; None: nothing, ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            client.recv(4096)
            if answer is None:
                time.sleep(10)
            else:
                client.sendall(answer)
            client.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n"


def test_a_page_goes_to_standard_output(curl: list[str]) -> None:
    with listener(HELLO) as url:
        done = run(curl, url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")


def test_what_is_known_of_a_transfer_is_written_out(curl: list[str], tmp_path: Path) -> None:
    with listener(HELLO) as url:
        done = run(curl, "-o", str(tmp_path / "page"), "-w", "%{local_port} %{remote_ip} %{time_total}", url)
    port, address, seconds = done.stdout.split()
    assert (tmp_path / "page").read_text() == "hello\n"
    assert 1024 <= int(port) <= 65535
    assert address == "127.0.0.1"
    assert 0 < float(seconds) < 10


def test_a_refusal_is_status_7(curl: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
    done = run(curl, "-w", "%{errormsg}|%{time_total}", url)
    assert done.returncode == 7
    assert done.stderr.startswith("curl: (7) Failed to connect to 127.0.0.1 port ")
    message, seconds = done.stdout.split("|")
    assert message.startswith("Failed to connect")
    assert float(seconds) < 5


def test_a_name_that_does_not_resolve_is_status_6(curl: list[str]) -> None:
    done = run(curl, "http://-/")
    assert done.returncode == 6
    assert "Could not resolve host" in done.stderr


def test_silence_is_status_28_after_the_time_allowed(curl: list[str]) -> None:
    with listener() as url:
        began = time.monotonic()
        done = run(curl, "--max-time", "0.5", url)
    assert done.returncode == 28
    assert time.monotonic() - began < 8


def test_a_body_cut_short_is_status_18(curl: list[str]) -> None:
    with listener(HELLO[:-3]) as url:
        done = run(curl, url)
    assert (done.returncode, done.stdout) == (18, "hel")


def test_a_connection_cut_before_any_answer_is_an_error(curl: list[str]) -> None:
    with listener(b"") as url:
        done = run(curl, url)
    assert done.returncode in (52, 56)
    assert done.stdout == ""


def test_the_rate_is_limited(tmp_path: Path) -> None:
    """Of the stand-in: curl's own shaping lets the first seconds pass in bursts."""
    body = bytes(300_000)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + body
    copy = tmp_path / "copy"
    command = [sys.executable, "-m", "natf_bsd.lab.curl", "--limit-rate", "200k", "-o", str(copy)]
    with listener(answer) as url:
        done = run(command, "-w", "%{time_total}", url)
    assert copy.read_bytes() == body
    assert 300_000 / 204_800 <= float(done.stdout) < 10


def test_big_files_come_whole(curl: list[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [*services.MODULE, "http", "--name", "carol", "--port", str(port)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == f"{services.READY}\n"
        copy = tmp_path / "big"
        assert run(curl, "-o", str(copy), f"http://127.0.0.1:{port}/big").returncode == 0
        assert copy.stat().st_size == services.BIG_SIZE
    finally:
        server.kill()
        server.communicate()
