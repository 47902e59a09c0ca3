"""A resolver on the external node that validates: it must hear the truth, and programs must not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from natf_bsd.lab.figure1 import Figure1Lab
from tests.e2e.name_servers import AUTHORITY, RESOLVERS, SIGNED_ZONE, ZONE, NameServers, missing
from tests.lab_platform import addresses

pytestmark = [pytest.mark.lab, pytest.mark.linux("a host of a jail has the machine's own resolv.conf")]

SIGNED, UNSIGNED, ELSEWHERE = f"alice.{SIGNED_ZONE}", f"alice.each.{ZONE}", f"www.elsewhere.{SIGNED_ZONE}"
DOMAINS = [SIGNED_ZONE, f"each.{ZONE}"]
LOCAL = RESOLVERS["unbound on this host"]


@pytest.fixture
def lab(figure1: Figure1Lab, servers: NameServers) -> Iterator[Figure1Lab]:
    """Its resolver starts with nothing in its cache."""
    if reason := missing(LOCAL.program):
        pytest.skip(reason)
    (figure1.run_dir / "etc" / "en" / "resolv.conf").write_text(f"nameserver {LOCAL.address}\n")
    resolver = servers.start_resolver(LOCAL)
    yield figure1
    assert figure1.en is not None
    assert figure1.en.stop() == 0
    resolver.stop()


def first_octets(lab: Figure1Lab, *names: str) -> list[str]:
    return [",".join(address.partition(".")[0] for address in addresses(lab, name)) for name in names]


def test_believed_alone_it_hears_the_truth_and_programs_get_virtual_addresses(lab: Figure1Lab) -> None:
    lab.start_en(home_domains=DOMAINS, resolvers=[LOCAL.address])
    assert first_octets(lab, SIGNED, UNSIGNED, ELSEWHERE) == ["240", "240", "203"]


def test_with_the_server_it_asks_believed_too_a_signed_name_of_ours_is_lost_and_no_other(lab: Figure1Lab) -> None:
    lab.start_en(home_domains=DOMAINS, resolvers=[LOCAL.address, AUTHORITY])
    assert first_octets(lab, SIGNED, UNSIGNED, ELSEWHERE) == ["", "240", "203"]
