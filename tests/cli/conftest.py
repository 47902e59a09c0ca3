"""Runs `natf` inside the test, on a host that is a temporary folder."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from natf_bsd.cli import main
from natf_bsd.ops.control import ControlServer
from natf_bsd.ops.loop import Loop


def _runner() -> CliRunner:
    """click before 8.2 mixes both streams unless told not to; later ones know no such word."""
    mixes = "mix_stderr" in inspect.signature(CliRunner).parameters
    return CliRunner(**({"mix_stderr": False} if mixes else {}))  # type: ignore[arg-type]


class Host:
    """`natf` with its own configuration, run directory and access control table in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "natf.toml"
        self.run_dir = folder / "run"
        self.act = folder / "natf.act"
        self.run_dir.mkdir()
        self.configure()

    def configure(self, en: str = "", router: str = "") -> None:
        self.config.write_text(
            f'[en]\nhome_domains = ["home.example.net"]\nrun_dir = "{self.run_dir}"\n{en}\n'
            f'[router]\nrun_dir = "{self.run_dir}"\nact = "{self.act}"\n{router}\n'
        )

    def natf(self, *arguments: str) -> Result:
        """A command's outcome. Whatever it does, it never shows a traceback."""
        result = _runner().invoke(main, ["--config", str(self.config), *arguments], prog_name="natf")
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        return result

    def good(self, *arguments: str) -> str:
        """Standard output of a command that must succeed in silence on the other stream."""
        result = self.natf(*arguments)
        assert (result.exit_code, result.stderr) == (0, "")
        return result.stdout

    def refused(self, *arguments: str) -> str:
        """The error of a command that must fail: one line, and nothing on standard output."""
        result = self.natf(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("Error: ")
        assert len(result.stderr.splitlines()) == 1
        return result.stderr.removeprefix("Error: ").removesuffix("\n")

    @contextmanager
    def daemon(self, role: str, handlers: dict[str, Callable[[dict[str, object]], object]]) -> Iterator[list[str]]:
        """A control socket of `role` that answers as `handlers` say; yields the commands it was asked."""
        asked: list[str] = []

        def listen(command: str) -> Callable[[dict[str, object]], object]:
            def answer(request: dict[str, object]) -> object:
                asked.append(command)
                return handlers[command](request)

            return answer

        stop, stopper = os.pipe()
        loop = Loop(lambda: None, lambda now: None)
        loop.add_reader(stop, loop.stop)
        server = ControlServer(self.run_dir / f"{role}.sock", loop, {command: listen(command) for command in handlers})
        thread = threading.Thread(target=loop.run)
        thread.start()
        try:
            yield asked
        finally:
            os.write(stopper, b"x")
            thread.join()
            server.close()
            loop.close()
            os.close(stop)
            os.close(stopper)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)
