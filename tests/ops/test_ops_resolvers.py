"""Which DNS servers a host asks, by its resolv.conf."""

from __future__ import annotations

from pathlib import Path

import pytest

from natf_bsd.ops.resolvers import Resolvers, name_servers
from natf_bsd.types import format_address


def shown(addresses: frozenset[bytes]) -> list[str]:
    return sorted(map(format_address, addresses))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nameserver 192.0.2.53\n", ["192.0.2.53"]),
        ("search a.b\nnameserver\t192.0.2.53\nnameserver 127.0.0.53 # local\n", ["127.0.0.53", "192.0.2.53"]),
        ("", ["127.0.0.1"]),
        ("# nameserver 192.0.2.53\n;nameserver 192.0.2.54\nnameservers 192.0.2.55\nnameserver\n", ["127.0.0.1"]),
        ("nameserver 0.0.0.0\n", ["127.0.0.1"]),
        ("nameserver 2001:db8::53\n", []),
        ("nameserver fe80::1%eth0\nnameserver 192.0.2.53", ["192.0.2.53"]),
    ],
)
def test_the_name_servers_of_a_file(text: str, expected: list[str]) -> None:
    assert shown(name_servers(text)) == expected


@pytest.fixture
def resolvers(tmp_path: Path) -> Resolvers:
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.53\n")
    return Resolvers(tmp_path / "resolv.conf", tmp_path / "nsswitch.conf", tmp_path / "resolved.conf")


def test_a_change_of_the_file_is_seen(resolvers: Resolvers, tmp_path: Path) -> None:
    assert shown(resolvers.read()) == ["127.0.0.53"]
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.54\n")
    assert shown(resolvers.read()) == ["192.0.2.54"]
    (tmp_path / "resolv.conf").unlink()
    assert shown(resolvers.read()) == ["127.0.0.1"]


def test_a_file_that_cannot_be_read_is_an_error(resolvers: Resolvers, tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(OSError, match=r"resolv\.conf"):
        resolvers.read()


@pytest.mark.parametrize(
    ("switch", "expected"),
    [
        ("passwd: files\nhosts: files resolve [!UNAVAIL=return] dns\n", ["127.0.0.53", "192.0.2.53"]),
        ("hosts: files dns # resolve\n", ["127.0.0.53"]),
        ("#hosts: resolve\nhosts: files dns\npasswd: resolve\n", ["127.0.0.53"]),
        ("hosts:\n", ["127.0.0.53"]),
        ("", ["127.0.0.53"]),
    ],
)
def test_the_servers_of_systemd_resolved_count_where_it_is_asked_without_dns(
    resolvers: Resolvers, tmp_path: Path, switch: str, expected: list[str]
) -> None:
    (tmp_path / "resolved.conf").write_text("nameserver 192.0.2.53\n")
    (tmp_path / "nsswitch.conf").write_text(switch)
    assert shown(resolvers.read()) == expected


def test_a_resolved_that_does_not_run_names_nobody(resolvers: Resolvers, tmp_path: Path) -> None:
    (tmp_path / "nsswitch.conf").write_text("hosts: resolve\n")
    assert shown(resolvers.read()) == ["127.0.0.53"]
