"""`natf lab up|down|exec|status`, as the README has people type them."""

from __future__ import annotations

import os
from functools import partial

import pytest
from click.testing import CliRunner, Result

from natf_bsd.cli import main
from natf_bsd.lab import figure1

pytestmark = pytest.mark.lab


def natf(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_a_lab_is_built_used_shown_and_removed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lab = partial(figure1.Figure1Lab, f"test-{os.getpid()}c")
    monkeypatch.setattr(figure1, "Figure1Lab", lab)
    try:
        up = natf("lab", "up")
        assert up.exit_code == 0, up.output
        assert natf("lab", "up").exit_code == 0, "a second time does no harm"
        assert natf("lab", "exec", "en", "curl", "-sS", "http://alice.home.example.net/").exit_code == 0
        assert "alice's page" in capfd.readouterr().out
        assert natf("lab", "exec", "en", "sh", "-c", "exit 3").exit_code == 3
        status = natf("lab", "status").output
        assert status.startswith("up, files in ")
        assert status.count("natf_bsd.cli --config") == 2
    finally:
        down = natf("lab", "down")
    assert down.exit_code == 0, down.output
    assert natf("lab", "status").output == "not up\n"
    assert natf("lab", "exec", "en", "true").exit_code == 1
