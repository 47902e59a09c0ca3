"""What others do to a set-up in force is found, told once and mended; what is as it was is left alone."""

from __future__ import annotations

import select
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from natf_bsd.errors import NatfError, RestartNeeded
from natf_bsd.firewall import guard, linux, plan
from natf_bsd.firewall.command import Command
from natf_bsd.firewall.guard import Guard, judge, read
from natf_bsd.firewall.installed import Installed
from natf_bsd.firewall.linux_gateway import Gateway
from natf_bsd.firewall.runner import ProcSys
from natf_bsd.ops.interfaces import Interface
from natf_bsd.types import parse_address

G2 = parse_address("203.0.113.1")
OTHER = parse_address("203.0.113.2")
WAN = Interface("wan", G2)

GOOD = """\
# rules
:NATF-RT-FORWARD - [0:0]
-A FORWARD -m comment --comment natf -j NATF-RT-FORWARD
-A NATF-RT-FORWARD -i natf0 -o natf0 -j ACCEPT
# policy
78:\tfrom all iif natf0 lookup 78 proto 78
# route
default dev natf0 proto 78 scope link\x20
# device
 natf0
# address
2: wan    inet 203.0.113.1/24 scope global wan\\       valid_lft forever preferred_lft forever
"""


def test_a_listing_is_read_by_section() -> None:
    listing = read(GOOD)
    assert list(listing) == ["rules", "policy", "route", "device", "address"]
    assert len(listing["rules"]) == 3
    assert listing["device"] == ("natf0",)
    assert read("") == {}


def test_what_is_as_it_was_needs_nothing() -> None:
    assert judge(read(GOOD), read(GOOD), G2) == guard.Finding((), G2)


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("-A FORWARD -m comment --comment natf -j NATF-RT-FORWARD\n", "firewall rules of natf"),
        ("-A NATF-RT-FORWARD -i natf0 -o natf0 -j ACCEPT\n", "firewall rules of natf"),
        ("78:\tfrom all iif natf0 lookup 78 proto 78\n", "ip rule"),
        ("default dev natf0 proto 78 scope link \n", "route of the TUN device"),
        (" natf0\n", "TUN device"),
    ],
)
def test_what_has_gone_is_named(gone: str, said: str) -> None:
    assert judge(read(GOOD), read(GOOD.replace(gone, "")), G2) == guard.Finding((said,), G2)


def test_a_rule_somebody_rewrote_is_a_change() -> None:
    assert judge(read(GOOD), read(GOOD.replace("ACCEPT", "DROP")), G2).changed == ("firewall rules of natf",)


ADDRESS = GOOD[GOOD.index("2: wan") :]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", None),
        (ADDRESS.replace("203.0.113.1", "203.0.113.2"), OTHER),
        (ADDRESS.replace("203.0.113.1", "203.0.113.2") + ADDRESS, G2),  # ours is still there
        ("5: ppp0    inet 203.0.113.2 peer 198.51.100.1/32 scope global ppp0\\  valid_lft forever\n", OTHER),
    ],
)
def test_the_address_of_the_interface(lines: str, expected: bytes | None) -> None:
    assert judge(read(GOOD), read(GOOD.replace(ADDRESS, lines)), G2) == guard.Finding((), expected)


class OneLoop:
    """A loop for one reader at a time, turned by hand until it has none."""

    def __init__(self) -> None:
        self._readers: dict[int, Callable[[], None]] = {}

    def add_reader(self, source: int, callback: Callable[[], None]) -> None:
        self._readers[source] = callback

    def remove_reader(self, source: int) -> None:
        del self._readers[source]

    def turn(self) -> None:
        while self._readers:
            for source in select.select(list(self._readers), [], [], 10)[0]:
                self._readers[source]()


class Site:
    """A "kernel" in a file that the set-up writes and others spoil."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.good = folder / "good"
        self.good.write_text(GOOD)
        self.look: tuple[str, ...] = ("cat", str(self.state))
        self.repair = Command(("cp", str(self.good), str(self.state)))
        self.asked: list[Interface] = []
        self.alarms = 0
        self.loop = OneLoop()
        self.interface = WAN
        self.listings: list[guard.Listing] = []
        self.moved = False
        self.wish: float | None = None
        self.found: Interface | None = None
        self.guard = Guard(
            Installed(self.plan(WAN), folder, ProcSys(folder)).__enter__(),
            self,
            self.loop,  # type: ignore[arg-type]
            alarm=lambda: self.alarms,
        )
        self.guard.tick(100.0)
        self.loop.turn()
        self.asked.clear()

    def outer(self) -> Interface:
        if self.found is None:
            raise NatfError("no IPv4 default route")
        return self.found

    def plan(self, interface: Interface) -> plan.Plan:
        self.asked.append(interface)
        if self.moved:
            raise RestartNeeded("the NAT rule has another number")
        return plan.Plan("router", [], [self.repair], [], [], self.look)

    def looked(self, found: guard.Listing, now: float) -> None:
        self.listings.append(found)

    def next_look(self) -> float | None:
        return self.wish

    def looks(self, now: float) -> None:
        self.guard.tick(now)
        self.loop.turn()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_it_looks_every_ten_seconds_and_touches_nothing(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    assert site.guard.next_deadline() == 110.0
    site.guard.tick(109.9)
    assert site.guard.counters == {"looked": 1, "healed": 0, "failed": 0}
    site.looks(110.0)
    assert site.guard.counters == {"looked": 2, "healed": 0, "failed": 0}
    assert (site.asked, warnings(caplog)) == ([], [])


def test_what_was_flushed_is_set_up_again_and_told_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.state.write_text(f"# address\n{ADDRESS}")
    site.looks(110.0)
    assert site.state.read_text() == GOOD
    site.looks(120.0)
    assert site.guard.counters == {"looked": 3, "healed": 1, "failed": 0}
    assert warnings(caplog) == [
        "changed by somebody: firewall rules of natf, ip rule, route of the TUN device, TUN device; set up again"
    ]


def test_a_changed_address_is_the_next_plans(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    moved = GOOD.replace("203.0.113.1", "203.0.113.2")
    site.state.write_text(moved)
    site.good.write_text(moved.replace("ACCEPT", "ACCEPT2"))  # the rules of the new plan differ
    site.looks(110.0)
    site.looks(120.0)
    assert site.asked == [Interface("wan", OTHER)]
    assert site.guard.interface == Interface("wan", OTHER)
    assert warnings(caplog) == ["the address of wan 203.0.113.1 is another one: wan 203.0.113.2; set up again"]


def test_without_an_address_it_says_so_once_and_waits(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.state.write_text(GOOD.replace(ADDRESS, ""))
    for now in 110.0, 120.0, 130.0:
        site.looks(now)
    assert warnings(caplog) == ["wan has no IPv4 address any more; waiting for one"]
    site.state.write_text(GOOD)
    site.looks(140.0)
    assert (site.asked, site.guard.counters["healed"]) == ([], 0)


def test_a_repair_that_fails_is_told_and_tried_again(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.state.write_text(f"# address\n{ADDRESS}")
    site.good.rename(site.good.with_suffix(".away"))
    site.looks(110.0)
    assert "not set up again: cp" in warnings(caplog)[0]
    site.good.with_suffix(".away").rename(site.good)
    site.looks(120.0)
    assert site.guard.counters == {"looked": 3, "healed": 1, "failed": 1}


def test_who_changes_it_again_at_once_is_told_of(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.good.write_text(GOOD.replace("ACCEPT", "DROP"))
    site.state.write_text(f"# address\n{ADDRESS}")
    site.looks(110.0)
    assert warnings(caplog)[0].endswith("set up again, and changed again at once")
    site.good.write_text(GOOD)
    site.looks(120.0)
    assert site.guard.counters["healed"] == 1, "what is right was not forgotten meanwhile"


def test_a_look_that_fails_is_no_empty_listing(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.state.unlink()
    site.looks(110.0)
    assert warnings(caplog) == ["what is set up cannot be listed (status 1)"]
    assert site.guard.counters == {"looked": 2, "healed": 0, "failed": 1}


def test_a_look_that_does_not_end_is_ended_by_the_next(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.guard._argv = ("sh", "-c", "sleep 1000; true")
    site.guard.tick(110.0)
    site.guard._argv = site.look
    site.looks(120.0)
    assert warnings(caplog) == ["the look at the firewall did not end within 10 s"]
    assert site.guard.counters == {"looked": 2, "healed": 0, "failed": 1}


def test_an_end_in_the_middle_of_a_look_leaves_no_child(site: Site) -> None:
    site.guard._argv = ("sleep", "1000")
    site.guard.tick(110.0)
    child = site.guard._child
    site.guard.close()
    site.guard.close()
    assert child is not None
    assert child.returncode == -9
    site.loop.turn()  # ends at once: nothing is left to read


def test_an_alarm_makes_it_look_at_once_but_not_all_the_time(site: Site) -> None:
    site.alarms = 1
    site.looks(105.0)
    assert site.guard.counters["looked"] == 2
    for hundredth in range(50):
        site.alarms += 1
        site.looks(105.0 + hundredth / 100)
    assert site.guard.counters["looked"] == 2
    assert site.guard.next_deadline() == 106.0


def test_a_first_look_that_fails_is_an_error(tmp_path: Path) -> None:
    class Blind:
        interface = WAN

        def outer(self) -> Interface:
            return WAN

        def plan(self, interface: Interface) -> plan.Plan:
            return plan.Plan("en", [], [], [], [], ("sh", "-c", "echo no iptables >&2; exit 3"))

        def looked(self, found: guard.Listing, now: float) -> None:
            raise AssertionError("nothing was found")

        def next_look(self) -> float | None:
            return None

    installed = Installed(Blind().plan(WAN), tmp_path, ProcSys(tmp_path))
    with pytest.raises(NatfError, match=r"cannot be listed \(status 3\): no iptables"):
        Guard(installed, Blind(), OneLoop())  # type: ignore[arg-type]


def test_everything_found_is_shown_to_the_side(site: Site) -> None:
    site.looks(110.0)
    assert site.listings[-1] == guard.read(GOOD)


def test_asked_to_look_now_it_heals_before_it_answers(site: Site) -> None:
    assert site.guard.look_now() is False
    site.state.write_text(f"# address\n{ADDRESS}")
    assert site.guard.look_now() is True
    assert site.state.read_text() == GOOD


def test_asked_to_look_now_it_says_that_it_could_not_heal(site: Site) -> None:
    """`natf en reload` where natf1 was renamed: not "as they should be"."""
    site.state.write_text(f"# address\n{ADDRESS}")
    site.good.rename(site.good.with_suffix(".away"))
    with pytest.raises(NatfError, match="not set up again: cp"):
        site.guard.look_now()
    site.good.with_suffix(".away").rename(site.good)
    assert site.guard.look_now() is True


def test_what_no_repair_can_mend_ends_the_daemon(site: Site) -> None:
    """Its supervisor starts it again, and it then opens what fits."""
    site.moved = True
    site.state.write_text(f"# address\n{ADDRESS}")
    site.looks(110.0)
    assert site.guard.next_deadline() == 111.0
    with pytest.raises(RestartNeeded):
        site.looks(111.0)


def test_a_firewall_that_is_just_being_loaded_ends_nothing(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """`service ipfw restart`: for a moment half of its rules are there, perhaps not yet the NAT's."""
    site.moved = True
    site.state.write_text(f"# address\n{ADDRESS}")
    site.looks(110.0)
    site.moved = False
    site.looks(111.0)
    assert site.guard.counters["healed"] == 1
    assert warnings(caplog)[0] == "the NAT rule has another number; looking once more"
    site.moved = True
    site.state.write_text(f"# address\n{ADDRESS}")
    site.looks(121.0)  # the first doubt again


def test_asked_to_look_now_it_says_that_it_will_end_and_does(site: Site) -> None:
    """`natf en reload`, called by rc.d/ipfw: an error for the caller is not the end of the daemon."""
    site.moved = True
    site.state.write_text(f"# address\n{ADDRESS}")
    with pytest.raises(NatfError, match="another number; if it stays so, the daemon ends") as caught:
        site.guard.look_now()
    assert not isinstance(caught.value, RestartNeeded)
    assert site.guard.next_deadline() == 101.0, "at once, not when the next look is due"
    with pytest.raises(RestartNeeded):
        site.looks(101.0)


def test_a_look_under_way_is_forgotten_when_asked_to_look_now(site: Site) -> None:
    """What it saw is older, the address before the last for instance."""
    site.guard._argv = ("sh", "-c", f"cat {site.state}; exec sleep 1000")
    site.guard.tick(110.0)
    site.guard._argv = site.look
    site.guard.look_now()
    assert site.guard._child is None


OTHERS = "# others\n4294967295 0\n"


def with_others(site: Site) -> None:
    """As on FreeBSD, where a look shows whether the rules of others are as they were."""
    for file in site.good, site.state:
        file.write_text(GOOD + OTHERS)
    site.guard._expected = read(GOOD + OTHERS)


def test_rules_of_others_may_change_as_long_as_ours_have_their_place(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even the NAT's rule must read as it did: what is in force is not taken away and set up again for that."""
    with_others(site)
    site.state.write_text(GOOD + OTHERS.replace("0", "1"))
    site.looks(110.0)
    site.looks(120.0)
    assert len(site.asked) == 1, "once: then it is the expected state"
    assert site.guard.counters == {"looked": 3, "healed": 0, "failed": 0}
    assert warnings(caplog) == []


def test_rules_of_others_that_get_in_front_of_ours_are_no_matter_of_waiting(site: Site) -> None:
    with_others(site)
    site.state.write_text(GOOD + OTHERS.replace("0", "1"))
    site.moved = True
    site.looks(110.0)
    with pytest.raises(RestartNeeded):
        site.looks(111.0)


def test_what_is_listed_of_each_role() -> None:
    rules = linux.EnFirewall("240.0.0.0/8", dns_queue=1, out_queue=2, in_queue=3, mark=1, mask=1)
    assert linux.en_look(rules, "eth0") == (
        "sh",
        "-c",
        "rules=$(iptables-save) || exit\n"
        "echo '# rules'; printf '%s\\n' \"$rules\" | grep NATF-EN-\n"
        "echo '# address'; ip -o -4 address show dev eth0 scope global 2>/dev/null || true",
    )
    gateway = Gateway("wan", G2, mtu=1500, tun="natf1", queue=1, mark=1)
    assert linux.en_look(replace(rules, gateway=gateway), "wan")[2].splitlines()[1:] == [
        "echo '# rules'; printf '%s\\n' \"$rules\" | grep NATF-EN-",
        "echo '# route'; ip -4 route show table main proto 78 2>/dev/null",
        "echo '# settings'; cd /proc/sys && cat net/ipv4/conf/natf1/rp_filter net/ipv6/conf/natf1/disable_ipv6"
        " 2>/dev/null",
        "echo '# device'; ip -o -4 address show dev natf1 up 2>/dev/null | cut -d: -f2-",
        "echo '# address'; ip -o -4 address show dev wan scope global 2>/dev/null || true",
    ]
    router = linux.RouterFirewall("wan", G2, control_queue=1, mark=1, mask=1, tun="natf0", table=99)
    assert linux.router_look(router)[2].splitlines()[1:] == [
        "echo '# rules'; printf '%s\\n' \"$rules\" | grep NATF-RT-",
        "echo '# policy'; ip -4 rule show priority 78 protocol 78",
        "echo '# route'; ip -4 route show table 99 proto 78 2>/dev/null",
        "echo '# settings'; cd /proc/sys && cat net/ipv4/conf/natf0/rp_filter net/ipv6/conf/natf0/disable_ipv6"
        " net/netfilter/nf_conntrack_tcp_be_liberal net/netfilter/nf_conntrack_tcp_timeout_max_retrans 2>/dev/null",
        "echo '# device'; ip -o link show dev natf0 up 2>/dev/null | cut -d: -f2",
        "echo '# address'; ip -o -4 address show dev wan scope global 2>/dev/null || true",
    ]


def test_a_side_may_wish_for_a_look_sooner_but_not_all_the_time(site: Site) -> None:
    site.wish = 103.0
    assert site.guard.next_deadline() == 103.0
    site.wish = 103.0
    site.looks(103.0)
    assert site.guard.counters["looked"] == 2
    assert site.guard.next_deadline() == 113.0, "a wish that a look has not fulfilled is no reason for one a second"
    site.wish = 103.1
    assert site.guard.next_deadline() == 104.0
    site.wish = None
    assert site.guard.next_deadline() == 113.0


def test_an_outer_interface_that_came_back_by_another_name_ends_the_daemon(site: Site) -> None:
    """Its supervisor starts it again, on the one that is there now."""
    site.state.write_text(GOOD.replace(ADDRESS, ""))
    site.looks(110.0)
    site.found = WAN
    site.looks(120.0)
    site.found = Interface("ppp1", OTHER)
    site.looks(130.0)
    with pytest.raises(RestartNeeded, match=r"the outer interface is ppp1 203\.0\.113\.2 now, no longer wan"):
        site.looks(131.0)
