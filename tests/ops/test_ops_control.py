"""The control socket, both ends: what a daemon answers to whom, and what a command makes of every kind of daemon."""

import contextlib
import json
import logging
import os
import socket
import stat
import threading
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natf_bsd.errors import ConfigError, NatfError
from natf_bsd.ops import control
from natf_bsd.ops.control import ControlServer, NoDaemon, ask
from natf_bsd.ops.loop import Loop


def refuse(request):
    raise ConfigError("natf.act", 3, "found action 'alow', expected allow or deny")


def fail(request):
    raise ZeroDivisionError("table")


HANDLERS = {
    "status": lambda request: {"tables": list(range(5)), "name": "é"},
    "echo": lambda request: request["text"],
    "refuse": refuse,
    "fail": fail,
    "strange": lambda request: object(),
    "nothing": lambda request: None,
}
COMMANDS = "echo, fail, nothing, refuse, status, strange"


@contextmanager
def running(path, handlers=HANDLERS):
    """A server in its loop, in a thread."""
    stop, stopper = os.pipe()
    loop = Loop(lambda: None, lambda now: None)
    loop.add_reader(stop, loop.stop)
    server = ControlServer(path, loop, handlers)
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield server
        assert thread.is_alive(), "the daemon must outlive its clients"
    finally:
        os.write(stopper, b"x")
        thread.join()
        server.close()
        loop.close()
        os.close(stop)
        os.close(stopper)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "en.sock"


@pytest.fixture
def daemon(path):
    with running(path):
        yield path


@contextmanager
def fake_daemon(path, answer):
    """Takes one request, sends the bytes `answer`, hangs up."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def serve():
            client, _ = listener.accept()
            with client:
                client.recv(65536)
                client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def talk(path, data):
    """What a client that sends `data` and then nothing more hears till the end."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(data)
        with contextlib.suppress(OSError):  # FreeBSD: ENOTCONN, when the daemon has answered and hung up already
            client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as stream:
            return stream.read()


def test_a_command_is_answered(daemon):
    assert ask(daemon, "status") == {"tables": [0, 1, 2, 3, 4], "name": "é"}
    assert ask(daemon, "nothing") is None


def test_arguments_arrive(daemon):
    assert ask(daemon, "echo", text="a\nb") == "a\nb"


def test_an_answer_larger_than_any_buffer_arrives_whole(path):
    text = "x" * 5_000_000
    with running(path, {"status": lambda request: text}):
        assert ask(path, "status") == text


def test_the_conversation_is_one_line_of_json_each_way(daemon):
    assert talk(daemon, b'{"command": "echo", "text": "hello"}\n') == b'{"result": "hello"}\n'


def test_an_unknown_command_is_told_the_known_ones(daemon):
    with pytest.raises(NatfError) as caught:
        ask(daemon, "stauts")
    assert str(caught.value) == f"expected a command: {COMMANDS}"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"status\n",
        b"[]\n",
        b"5\n",
        b"null\n",
        b"{}\n",
        b'{"command": 5}\n',
        b'{"command": ["status"]}\n',
        b'{"command": {}}\n',
        b'{"command": "sta',
        b"\xff\xfe\n",
        b"\0" * 100 + b"\n",
        b"[" * 60000 + b"\n",
        b"9" * 5000 + b"\n",
        b'{"command": "status"}\n{"command": "status"}\n',
    ],
)
def test_garbage_is_told_the_commands(daemon, line):
    assert json.loads(talk(daemon, line)) == {"error": f"expected a command: {COMMANDS}"}
    assert ask(daemon, "nothing") is None


def test_a_request_without_end_is_cut_off(daemon):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon))
        with pytest.raises(OSError):
            for _ in range(1000):
                client.sendall(b"x" * 65536)
    assert ask(daemon, "nothing") is None


def test_a_refusal_arrives_as_it_was_said(daemon):
    with pytest.raises(NatfError) as caught:
        ask(daemon, "refuse")
    assert str(caught.value) == "natf.act:3: found action 'alow', expected allow or deny"


@pytest.mark.parametrize("command", ["fail", "strange"])
def test_a_fault_in_a_handler_is_logged_and_costs_the_daemon_nothing(daemon, caplog, command):
    with pytest.raises(NatfError, match=r"^fault in the daemon, see its log: (ZeroDivision|Type)Error\("):
        ask(daemon, command)
    assert ask(daemon, "nothing") is None
    assert [(entry.levelno, bool(entry.exc_info)) for entry in caplog.records] == [(logging.ERROR, True)]
    assert f"command {command}" in caplog.text


def test_a_missing_argument_is_a_fault_that_costs_the_daemon_nothing(daemon):
    with pytest.raises(NatfError, match="KeyError"):
        ask(daemon, "echo")
    assert ask(daemon, "nothing") is None


def test_a_client_that_hangs_up_at_once_is_forgotten(daemon):
    for data in (b"", b'{"command": "status"}\n'):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(daemon))
            client.sendall(data)
    assert ask(daemon, "nothing") is None


def heard_after(path, *requests):
    """What clients that sent `requests` before the daemon looked find when it has served them all, without threads."""
    rounds = iter(requests)
    loop = Loop(lambda: 0.0, lambda now: next(rounds, None) is None and loop.stop())
    server = ControlServer(path, loop, {"nothing": HANDLERS["nothing"], "huge": lambda request: "x" * 5_000_000})
    clients = [socket.socket(socket.AF_UNIX) for _ in requests]
    try:
        for client, request in zip(clients, requests, strict=True):
            client.connect(str(path))
            client.sendall(request)
        loop.run()
        return [client.makefile("rb").read() for client in clients]
    finally:
        for client in clients:
            client.close()
        server.close()
        loop.close()


def test_a_client_that_stalls_is_left(path, monkeypatch):
    monkeypatch.setattr(control, "_SERVE_TIMEOUT", 0.005)
    heard = heard_after(path, b'{"command"', b'{"command": "nothing"}\n')
    assert heard == [b"", b'{"result": null}\n']


def test_a_client_that_does_not_read_is_left(path, monkeypatch):
    monkeypatch.setattr(control, "_SERVE_TIMEOUT", 0.005)
    first, second = heard_after(path, b'{"command": "huge"}\n', b'{"command": "nothing"}\n')
    assert 0 < len(first) < 5_000_000
    assert second == b'{"result": null}\n'


def test_a_client_cannot_hold_the_daemon_by_sending_drop_by_drop(monkeypatch):
    """The time is that of the whole request, not of each of its bytes."""
    now = [0.0]
    monkeypatch.setattr(control, "monotonic", lambda: now[0])
    waits = []

    class Dripping:
        def settimeout(self, seconds):
            waits.append(seconds)

        def recv(self, size):
            now[0] += 0.2
            return b"x"

    with pytest.raises(TimeoutError):
        control._read_line(Dripping(), 65536, 0.5)
    assert waits == pytest.approx([0.5, 0.3, 0.1])


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=200))
def test_any_request_gets_one_line_of_json_or_nothing(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.sock"
    with running(path):
        assert json.loads(talk(path, data)).keys() in ({"error"}, {"result"})


def test_only_the_owner_may_connect(path):
    mask = os.umask(0)
    try:
        with running(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.umask(0) == 0, "the daemon's umask is as it was"
    finally:
        os.umask(mask)


def test_a_stale_socket_is_taken_over_and_removed_at_the_end(path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with running(path):
        assert ask(path, "nothing") is None
    assert not path.exists()


def test_a_path_too_long_for_a_socket_is_named(tmp_path):
    loop = Loop(lambda: None, lambda now: None)
    path = tmp_path / ("x" * 120)
    with pytest.raises(NatfError) as caught:
        ControlServer(path, loop, {})
    assert str(caught.value) == f"{path}: AF_UNIX path too long; expected to make the control socket there"
    loop.close()


def test_a_place_where_no_socket_can_be_is_named(tmp_path):
    loop = Loop(lambda: None, lambda now: None)
    with pytest.raises(NatfError, match=r"none/en.sock: No such file or directory; expected to make"):
        ControlServer(tmp_path / "none" / "en.sock", loop, {})
    (tmp_path / "en.sock").mkdir()
    with pytest.raises(NatfError, match=r"en.sock: (Is a directory|Operation not permitted); expected to make"):
        ControlServer(tmp_path / "en.sock", loop, {})
    loop.close()


def test_nobody_there_is_said(path):
    with pytest.raises(NoDaemon) as caught:
        ask(path, "status")
    assert str(caught.value) == f"no daemon is running at {path}"
    assert not caught.value.killed


def test_a_socket_without_its_daemon_tells_that_it_was_killed(path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NoDaemon) as caught:
        ask(path, "status")
    assert str(caught.value) == f"no daemon is running at {path}; the last one was killed (natf cleanup)"
    assert caught.value.killed


def test_one_who_may_not_is_told_who_may(path, monkeypatch):
    def connect(self, address):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(NatfError, match="permission denied; expected to run as the user the daemon runs as"):
        ask(path, "status")


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b"", "nothing"),
        (b"hello\n", r"b'hello\n'"),
        (b"5\n", r"b'5\n'"),
        (b"[]\n", r"b'[]\n'"),
        (b"{}\n", r"b'{}\n'"),
        (b'{"result": ', """b'{"result": '"""),
        (b"\xff\n", r"b'\xff\n'"),
        (b"y" * 100, f"b'{'y' * 60}'"),
        (b"[" * 100000, f"b'{'[' * 60}'"),
    ],
)
def test_a_daemon_that_answers_something_else_is_quoted(path, answer, found):
    with fake_daemon(path, answer), pytest.raises(NatfError) as caught:
        ask(path, "status")
    assert str(caught.value) == f"{path}: the daemon answered {found}; expected one line of JSON"


def test_a_daemon_that_says_nothing_is_not_waited_for_for_ever(path, monkeypatch):
    monkeypatch.setattr(control, "_TIMEOUT", 0.005)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        with pytest.raises(NatfError) as caught:
            ask(path, "status")
    assert str(caught.value) == f"{path}: no answer from the daemon: timed out"
