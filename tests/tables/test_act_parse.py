import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.errors import ConfigError
from natf_bsd.tables.act import MAXIMUM_LINES, AccessTable, Service, parse
from natf_bsd.types import Protocol, parse_address

TCP, UDP = Protocol.TCP, Protocol.UDP

EXAMPLE = """\
# name  address       action  services
alice   192.168.0.2   allow                               # every port

bob\t192.168.0.3   allow   tcp/80,443 udp/5000-5010
  eve   192.168.0.4   deny
"""


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, "act")
    return str(caught.value)


def test_the_documented_example_is_understood():
    alice, bob, eve = parse(EXAMPLE, "act")
    assert (alice.name, alice.address, alice.allow, alice.services, alice.line) == (
        "alice",
        parse_address("192.168.0.2"),
        True,
        (),
        2,
    )
    assert (bob.name, bob.line) == ("bob", 4)
    assert bob.services == (Service(TCP, 80, 80), Service(TCP, 443, 443), Service(UDP, 5000, 5010))
    assert (eve.name, eve.allow, eve.line) == ("eve", False, 5)


def test_look_up_finds_names_as_written_and_nothing_else():
    table = parse(EXAMPLE, "act")
    assert table.lookup("bob") is list(table)[1]
    assert table.lookup("mallory") is None
    assert table.lookup("Bob") is None
    assert len(table) == 3


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n   # here\n\t\n", "#"])
def test_a_file_without_entries_is_an_empty_table(text):
    assert list(parse(text, "act")) == []


def test_line_ends_of_other_systems_and_a_missing_last_one_do_not_matter():
    assert [e.line for e in parse("a 10.0.0.1 allow\r\n\r\nb 10.0.0.2 deny\r\nc 10.0.0.3 allow", "act")] == [1, 3, 4]


def test_a_hash_within_a_word_begins_no_comment():
    assert refused("a 10.0.0.1 allow#not\n") == "act:1: found action 'allow#not', expected allow or deny"


@pytest.mark.parametrize(
    ("name", "protocol", "port", "permitted"),
    [
        ("alice", TCP, 1, True),
        ("alice", UDP, 65535, True),
        ("bob", TCP, 80, True),
        ("bob", TCP, 443, True),
        ("bob", TCP, 81, False),
        ("bob", UDP, 80, False),
        ("bob", UDP, 4999, False),
        ("bob", UDP, 5000, True),
        ("bob", UDP, 5010, True),
        ("bob", UDP, 5011, False),
        ("eve", TCP, 80, False),
    ],
)
def test_permits(name, protocol, port, permitted):
    assert parse(EXAMPLE, "act").lookup(name).permits(protocol, port) is permitted


def test_deny_denies_also_the_ports_it_lists():
    (bob,) = parse("bob 192.168.0.3 deny tcp/80\n", "act")
    assert not bob.permits(TCP, 80)
    assert not bob.permits(TCP, 81)


def test_services_are_shown_as_they_are_written():
    assert [str(service) for service in parse(EXAMPLE, "act").lookup("bob").services] == [
        "tcp/80",
        "tcp/443",
        "udp/5000-5010",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("alice", "found 1 column, expected name address action [services...]"),
        ("alice 192.168.0.2", "found 2 columns, expected name address action [services...]"),
        ("Alice 192.168.0.2 allow", "found upper case in name 'Alice', expected 'alice'"),
        ("a.b 192.168.0.2 allow", "found name 'a.b', expected one label"),
        ("-a 192.168.0.2 allow", "found name '-a', expected one label"),
        ("a- 192.168.0.2 allow", "found name 'a-', expected one label"),
        ("jürgen 192.168.0.2 allow", "found name 'jürgen', expected one label"),
        ("a" * 64 + " 192.168.0.2 allow", f"found name '{'a' * 64}', expected one label"),
        ("a\u00a0b 192.168.0.2 allow", "found name 'a\\xa0b', expected one label"),
        ("a 192.168.0 allow", "found address '192.168.0', expected an IPv4 address"),
        ("a 192.168.0.02 allow", "found address '192.168.0.02', expected an IPv4 address"),
        ("a fe80::1 allow", "found address 'fe80::1', expected an IPv4 address"),
        ("a 192.168.0.2\0 allow", "found address '192.168.0.2\\x00', expected an IPv4 address"),
        ("a 224.0.0.1 allow", "found multicast address 224.0.0.1, expected the address of a host"),
        ("a 239.255.255.255 allow", "found multicast address"),
        ("a 127.0.0.1 allow", "found loopback address"),
        ("a 0.0.0.0 allow", "found this network address"),
        ("a 240.0.0.1 allow", "found reserved (240.0.0.0/4) address"),
        ("a 255.255.255.255 allow", "found broadcast address"),
        ("a 192.168.0.2 permit", "found action 'permit', expected allow or deny"),
        ("a 192.168.0.2 Allow", "found action 'Allow', expected allow or deny"),
        ("a 192.168.0.2 allow http", "found service 'http', expected tcp/PORTS or udp/PORTS"),
        ("a 192.168.0.2 allow tcp", "found service 'tcp', expected tcp/PORTS or udp/PORTS"),
        ("a 192.168.0.2 allow sctp/80", "found service 'sctp/80', expected"),
        ("a 192.168.0.2 allow tcp/", "found ports '' in 'tcp/', expected 1 to 65535, or LOW-HIGH"),
        ("a 192.168.0.2 allow tcp/0", "found ports '0' in 'tcp/0', expected"),
        ("a 192.168.0.2 allow tcp/65536", "found ports '65536' in 'tcp/65536', expected"),
        ("a 192.168.0.2 allow tcp/80,,81", "found ports '' in 'tcp/80,,81', expected"),
        ("a 192.168.0.2 allow tcp/90-80", "found ports '90-80' in 'tcp/90-80', expected"),
        ("a 192.168.0.2 allow tcp/\u0661", "found ports '\u0661' in"),
        ("a 192.168.0.2 allow tcp/80 oops", "found service 'oops', expected"),
    ],
)
def test_a_bad_line_is_named_with_what_was_found_and_expected(line, message):
    assert refused(f"# first\n{line}\n").startswith(f"act:2: {message}")


def test_a_name_listed_twice_is_refused_and_the_first_line_named():
    text = "alice 192.168.0.2 allow\n\nalice 192.168.0.3 deny\n"
    assert refused(text) == "act:3: found 'alice' again, expected one line a name; line 1 has it"


def test_two_names_may_have_one_address():
    assert len(parse("a 192.168.0.2 allow\nb 192.168.0.2 deny\n", "act")) == 2


def test_a_form_feed_does_not_shift_line_numbers():
    assert refused("# a\x0cb\x85\u2028c\nbad\n").startswith("act:2:")


def test_the_longest_file_is_read_and_one_line_more_is_not():
    assert len(parse("\n" * (MAXIMUM_LINES - 1) + "a 10.0.0.1 allow", "act")) == 1
    assert f"act:{MAXIMUM_LINES + 1}: found more than {MAXIMUM_LINES} lines" in refused("\n" * (MAXIMUM_LINES + 1))


@given(st.text(max_size=200))
def test_any_text_is_a_table_or_a_config_error(text):
    try:
        table = parse(text, "act")
    except ConfigError as error:
        assert 1 <= error.line <= text.count("\n") + 1
    else:
        assert isinstance(table, AccessTable)
