"""How the daemon ends when its supervisor has to start it again."""

from __future__ import annotations

import pytest

from natf_bsd.config import EnConfig
from natf_bsd.en.daemon import EnDaemon
from natf_bsd.errors import RestartNeeded


class Loop:
    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def run(self) -> None:
        if self._error is not None:
            raise self._error


class Installed:
    stays = 0

    def stay(self) -> None:
        self.stays += 1


@pytest.mark.parametrize(
    ("error", "stays"), [(None, 0), (RestartNeeded("the firewall's rules have moved"), 1), (ValueError("a fault"), 0)]
)
def test_virtual_addresses_are_refused_until_it_is_started_again(error: Exception | None, stays: int) -> None:
    daemon = EnDaemon(EnConfig(("home.example.net",)))
    daemon._loop = Loop(error)  # type: ignore[assignment]
    daemon._installed = installed = Installed()  # type: ignore[assignment]
    if error is None:
        daemon._serve()
    else:
        with pytest.raises(type(error)):
            daemon._serve()
    assert installed.stays == stays
