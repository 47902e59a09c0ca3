"""`natf status`: the tables of a running daemon, for people and for programs."""

import io
import json
import re
import socket

import dns.message
import dns.rrset
import pytest
from rich.console import Console

from natf_bsd.config import EnConfig, RouterConfig, settings_of
from natf_bsd.en import report
from natf_bsd.en.counts import COUNTERS as EN_COUNTERS
from natf_bsd.errors import NatfError
from natf_bsd.lab.fabric import EN, ROUTER, Fabric
from natf_bsd.ops.render import render
from natf_bsd.ops.trace import Trace
from natf_bsd.router.counts import COUNTERS as ROUTER_COUNTERS
from natf_bsd.types import Endpoint, format_address, parse_address
from natf_bsd.wire import build

ROUTER_STATUS = {
    "role": "router",
    "process": 4321,
    "interface": "wan 203.0.113.1",
    "nat": "netfilter",
    "settings": settings_of(RouterConfig()),
    "act": [
        {"name": "alice", "address": "192.168.0.2", "action": "allow", "services": []},
        {"name": "bob", "address": "192.168.0.3", "action": "deny", "services": ["tcp/80", "udp/5000-5010"]},
    ],
    "pending": 0,
    "counters": dict.fromkeys(ROUTER_COUNTERS, 0) | {"request.received": 7, "request.answered.denied": 2},
    "handles": {"control": {"received": 7, "queue_full": 3, "buffer_full": 0}},
    "trace": Trace().snapshot(),
}


@pytest.fixture(scope="module")
def en_status():
    """What the external node's tables are after alice was resolved and greeted by UDP, an hour after the TTL's end."""
    fabric = Fabric(en=EnConfig(("home.example.net",)))
    answer = dns.message.make_response(dns.message.make_query("alice.home.example.net.", "A"))
    answer.answer.append(dns.rrset.from_text("alice.home.example.net.", 60, "IN", "A", format_address(ROUTER)))
    seen = dns.message.from_wire(fabric.resolve(answer.to_wire()))
    virtual = parse_address(seen.answer[0][0].address)
    fabric.en_sends(build.udp(Endpoint(EN, 40000), Endpoint(virtual, 7), b"hello"))
    fabric.run(1.0)
    tables = report.tables(fabric.en, fabric.now, 1000)
    return {
        "role": "en",
        "process": 1234,
        "interface": "eth0 203.0.113.10",
        "settings": settings_of(EnConfig(("home.example.net",))),
        **tables,
        "handles": {"out": {"received": 1, "sent": 1, "dropped": 0}},
        "trace": Trace().snapshot(),
    }


def lines_with(text, word):
    return [line for line in text.splitlines() if word in line]


def test_the_external_node_as_text(host, en_status):
    with host.daemon("en", {"status": lambda request: en_status}):
        text = host.good("status")
    assert text.startswith("external node, process 1234, eth0 203.0.113.10\n")
    assert "NRT, names (1)" in text
    assert "VAT, flows (1)" in text
    name, flow = lines_with(text, "alice.home.example.net")
    virtual = en_status["names"][0]["virtual"]
    assert re.search(rf"alice\.home\.example\.net .* {re.escape(virtual)} .* 203\.0\.113\.1 .* 1 .* 59 s", name)
    assert re.search(rf"udp .* 203\.0\.113\.10:40000 .* {re.escape(virtual)}:7 .* 203\.0\.113\.1:\d+ ", flow)


def test_a_counter_is_shown_with_what_it_counts_unless_it_is_zero(host, en_status):
    with host.daemon("en", {"status": lambda request: en_status}):
        text = host.good("status", "en")
    for name, count in en_status["counters"].items():
        shown = lines_with(text, f" {name} ")
        assert len(shown) == bool(count)
        assert not shown or (f" {count} " in shown[0] and EN_COUNTERS[name] in shown[0])
    assert lines_with(text, "dns.sent.rewritten")


def test_the_router_as_text(host):
    with host.daemon("router", {"status": lambda request: ROUTER_STATUS}):
        text = host.good("status")
    assert text.startswith("router (NAT: netfilter), process 4321, wan 203.0.113.1\n")
    (alice,), (bob,) = lines_with(text, "alice"), lines_with(text, "bob")
    assert re.search(r"192\.168\.0\.2 .* allow .* any", alice)
    assert re.search(r"192\.168\.0\.3 .* deny .* tcp/80 udp/5000-5010", bob)
    assert re.search(r" 2 .* answered: denied", lines_with(text, "request.answered.denied")[0])


def test_programs_get_everything_as_json(host, en_status):
    with (
        host.daemon("en", {"status": lambda request: en_status}),
        host.daemon("router", {"status": lambda request: ROUTER_STATUS}),
    ):
        text = host.good("status", "--json")
        router = host.good("status", "router", "--json")
    expected = json.loads(json.dumps({"en": en_status, "router": ROUTER_STATUS}))
    assert json.loads(text, parse_constant=pytest.fail) == expected
    assert json.loads(router) == {"router": expected["router"]}


def test_both_daemons_of_one_host_are_shown_or_the_one_that_was_asked_for(host, en_status):
    with (
        host.daemon("en", {"status": lambda request: en_status}) as en,
        host.daemon("router", {"status": lambda request: ROUTER_STATUS}) as router,
    ):
        both = host.good("status")
        assert both.index("external node") < both.index("router (NAT")
        assert "external node" not in host.good("status", "router")
    assert (en, router) == (["status"], ["status", "status"])


def test_nobody_there_is_an_error_that_says_where_was_looked(host):
    assert host.refused("status") == (
        f"no daemon is running at {host.run_dir}/en.sock; no daemon is running at {host.run_dir}/router.sock"
    )
    assert host.refused("status", "en") == f"no daemon is running at {host.run_dir}/en.sock"


def test_a_daemon_that_was_killed_is_mentioned_beside_the_one_that_lives(host):
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(host.run_dir / "en.sock"))
    with host.daemon("router", {"status": lambda request: ROUTER_STATUS}):
        result = host.natf("status")
        text = host.good("status", "router")
    assert result.exit_code == 0
    assert result.stdout == text
    assert result.stderr == (
        f"no daemon is running at {host.run_dir}/en.sock; the last one was killed (natf cleanup)\n"
    )


def test_a_daemon_that_refuses_is_an_error(host):
    def refuse(request):
        raise NatfError("no tables yet")

    with host.daemon("en", {"status": refuse}):
        assert host.refused("status") == "no tables yet"


def test_an_unknown_role_is_a_mistake_of_usage(host):
    result = host.natf("status", "switch")
    assert result.exit_code == 2
    assert "'switch' is not one of 'en', 'router'" in result.stderr


def test_the_configuration_that_was_named_must_be_there(host, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    host.config.unlink()
    for command in (["status"], ["cleanup"], ["en", "run"], ["router", "run"]):
        assert "No such file or directory; expected the configuration file" in host.refused(*command)


def test_a_host_without_configuration_has_the_default_places(host, monkeypatch):
    monkeypatch.setattr("natf_bsd.config.DEFAULT_PATH", host.config)
    monkeypatch.setattr("natf_bsd.config.RUN_DIR", host.folder / "default")
    host.config.unlink()
    assert host.refused("status", "en") == f"no daemon is running at {host.folder}/default/en.sock"


def rendered(status, width):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    render(status, console)
    return console.file.getvalue()


def test_on_a_narrow_terminal_nothing_is_lost(en_status):
    text = rendered(en_status, 60)
    assert all(len(line) <= 60 for line in text.splitlines())
    assert "..." not in text
    assert "…" not in text


def test_what_is_over_is_shown_as_over(en_status):
    (name,), (flow,) = en_status["names"], en_status["flows"]
    late = en_status | {"names": [name | {"ttl_left": -3000.0}], "flows": [flow | {"expires_in": -0.4}]}
    text = rendered(late, 200)
    assert "-" not in "".join(lines_with(text, "alice.home"))
    assert "0 s" in lines_with(text, "alice.home")[0]


def test_a_direct_flow_is_marked(en_status):
    direct = en_status | {"flows": [en_status["flows"][0] | {"direct": True}]}
    assert ", direct" in rendered(direct, 200)


def test_empty_tables_are_shown_empty():
    empty = {"names": [], "names_total": 0, "flows": [], "flows_total": 0, "routers": [], "counters": {}, "handles": {}}
    empty["heard"] = []
    refused = {"refused": {"names": 0, "flows": 0}}
    text = rendered({"role": "en", "process": 1, "interface": "eth0 203.0.113.10"} | empty | refused, 100)
    assert "NRT, names (0)" in text


def test_what_a_full_table_refused_is_shown(en_status):
    assert en_status["refused"] == {"names": 0, "flows": 0, "routers": 0, "refusals": 0}
    text = rendered(en_status | {"refused": {"names": 3, "flows": 4}}, 100)
    assert "NRT, names (1, 3 refused)" in text
    assert "VAT, flows (1, 4 refused)" in text


def test_losses_in_the_kernel_show_in_the_text():
    assert "received 7, queue_full 3" in rendered(ROUTER_STATUS, 240)
