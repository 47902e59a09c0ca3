"""`natf act`: what becomes of the file, of the running router, and of mistakes."""

import os
import socket

import pytest

from natf_bsd.errors import ConfigError

TABLE = """\
# who may be reached
alice   192.168.0.2   allow   # her own machine

bob     192.168.0.3   allow   tcp/80,443 udp/5000-5010
eve     192.168.0.4   deny
# the end
"""


@pytest.fixture
def table(host):
    host.act.write_text(TABLE)
    return host.act


def test_list_prints_the_table(host, table):
    assert host.good("act", "list").splitlines() == [
        "alice                192.168.0.2     allow any",
        "bob                  192.168.0.3     allow tcp/80 tcp/443 udp/5000-5010",
        "eve                  192.168.0.4     deny  any",
    ]


def test_an_empty_table_says_what_that_means(host):
    host.act.write_text("# nobody yet\n")
    result = host.natf("act", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"{host.act}: nobody is listed, so everybody is denied (natf act add NAME ADDRESS)\n"


def test_add_puts_a_line_at_the_end_in_the_same_columns(host, table):
    assert host.good("act", "add", "carol", "192.168.0.5", "tcp/22", "udp/53") == ""
    assert table.read_text() == f"{TABLE}carol   192.168.0.5   allow   tcp/22 udp/53\n"


def test_add_can_deny(host, table):
    host.good("act", "add", "--deny", "mallory", "192.168.0.6")
    assert table.read_text() == f"{TABLE}mallory 192.168.0.6   deny\n"


def test_allow_and_deny_change_one_word(host, table):
    host.good("act", "deny", "alice")
    assert table.read_text() == TABLE.replace("192.168.0.2   allow", "192.168.0.2   deny")
    host.good("act", "allow", "alice")
    host.good("act", "allow", "alice")
    assert table.read_text() == TABLE


def test_remove_takes_one_line(host, table):
    host.good("act", "remove", "bob")
    assert table.read_text() == "".join(line for line in TABLE.splitlines(True) if not line.startswith("bob"))


def test_first_host_of_a_new_table(host):
    host.act.write_text("")
    host.good("act", "add", "alice", "192.168.0.2")
    assert host.act.read_text() == "alice   192.168.0.2     allow\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "bob", "192.168.0.9"], "{act}:4: 'bob' is listed already, with 192.168.0.3"),
        (["add", "Carol", "192.168.0.9"], "found upper case in name 'Carol', expected 'carol'"),
        (
            ["add", "carol.home", "192.168.0.9"],
            "found name 'carol.home', expected one label of 1 to 63 lower-case letters, digits, hyphens, underscores",
        ),
        (["add", "carol", "192.168.0"], "found address '192.168.0', expected an IPv4 address such as 192.168.0.2"),
        (["add", "carol", "::1"], "found address '::1', expected an IPv4 address such as 192.168.0.2"),
        (["add", "carol", "127.0.0.1"], "found loopback address 127.0.0.1, expected the address of a host"),
        (["add", "carol", "224.0.0.1"], "found multicast address 224.0.0.1, expected the address of a host"),
        (
            ["add", "carol", "192.168.0.9", "http"],
            "found service 'http', expected tcp/PORTS or udp/PORTS such as tcp/80,443 or udp/5000-5010",
        ),
        (
            ["add", "carol", "192.168.0.9", "tcp/70000"],
            "found ports '70000' in 'tcp/70000', expected 1 to 65535, or LOW-HIGH",
        ),
        (["allow", "carol"], "{act}: 'carol' is not listed"),
        (["deny", "carol"], "{act}: 'carol' is not listed"),
        (["remove", "carol"], "{act}: 'carol' is not listed"),
    ],
)
def test_a_mistake_is_named_and_changes_nothing(host, table, arguments, message):
    before = os.stat(table)
    assert host.refused("act", *arguments) == message.format(act=table)
    after = os.stat(table)
    assert table.read_text() == TABLE
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("carol 192.168.0.5 alow", "found action 'alow', expected allow or deny"),
        ("carol 192.168.0.5", "found 2 columns, expected name address action [services...]"),
        ("carol 240.0.0.1 allow", "found reserved (240.0.0.0/4) address 240.0.0.1, expected the address of a host"),
        ("alice 192.168.0.5 allow", "found 'alice' again, expected one line a name; line 2 has it"),
    ],
)
@pytest.mark.parametrize("command", [["list"], ["add", "dave", "192.168.0.7"], ["deny", "bob"], ["remove", "bob"]])
def test_a_bad_line_in_the_file_is_named_by_file_and_line_and_stops_every_command(host, command, line, message):
    host.act.write_text(f"{TABLE}{line}\n")
    assert host.refused("act", *command) == f"{host.act}:7: {message}"
    assert host.act.read_text() == f"{TABLE}{line}\n"


@pytest.mark.parametrize("action", ["allow", "deny"])
def test_the_action_among_the_services_is_a_mistake_of_usage(host, table, action):
    result = host.natf("act", "add", "carol", "192.168.0.5", action)
    assert result.exit_code == 2
    assert f"found '{action}' among the services; allow is the default, --deny the other" in result.stderr
    assert table.read_text() == TABLE


@pytest.mark.parametrize("command", [["list"], ["add", "alice", "192.168.0.2"], ["deny", "alice"]])
def test_a_missing_table_says_how_to_begin(host, command):
    assert host.refused("act", *command) == (
        f"{host.act}: no such access control table; expected one, empty at first (touch {host.act})"
    )
    assert not host.act.exists()


def test_another_file_can_be_named(host, table):
    other = host.folder / "other.act"
    other.write_text("dave 192.168.0.7 deny\n")
    host.good("act", "--file", str(other), "allow", "dave")
    assert other.read_text() == "dave 192.168.0.7 allow\n"
    assert table.read_text() == TABLE


def test_a_configuration_that_was_named_must_be_there_even_with_a_file(host, table):
    host.config.unlink()
    assert host.refused("act", "--file", str(table), "list") == (
        f"{host.config}: No such file or directory; expected the configuration file (--config names another)"
    )


def test_without_any_configuration_a_file_is_enough(host, table, monkeypatch):
    monkeypatch.setattr("natf_bsd.config.DEFAULT_PATH", host.config)
    host.config.unlink()
    assert host.good("act", "--file", str(table), "list").startswith("alice ")


def test_a_broken_configuration_is_named(host, table):
    host.configure(router="cookies = 5")
    assert host.refused("act", "list").startswith(f"{host.config}:8: router.cookies = 5: expected ")


@pytest.mark.parametrize(
    "command", [["add", "carol", "192.168.0.5"], ["allow", "eve"], ["deny", "alice"], ["remove", "bob"]]
)
def test_a_running_router_is_told_once_the_file_is_written(host, table, command):
    seen = []
    with host.daemon("router", {"reload": lambda request: seen.append(table.read_text())}) as asked:
        host.good("act", *command)
    assert asked == ["reload"]
    assert seen == [table.read_text()] != [TABLE]


def test_a_running_router_is_told_whatever_way_the_file_is_named(host, table, monkeypatch):
    monkeypatch.chdir(host.folder)
    (host.folder / "link").symlink_to(table)
    with host.daemon("router", {"reload": lambda request: None}) as asked:
        host.good("act", "--file", "natf.act", "deny", "alice")
        host.good("act", "--file", "link", "deny", "bob")
    assert asked == ["reload", "reload"]


def test_a_router_with_another_table_is_left_alone(host, table):
    other = host.folder / "other.act"
    other.write_text("")
    with host.daemon("router", {"reload": lambda request: None}) as asked:
        host.good("act", "--file", str(other), "add", "dave", "192.168.0.7")
        host.good("act", "list")
        host.refused("act", "add", "alice", "192.168.0.9")
    assert asked == []


def test_a_router_that_does_not_run_is_no_mistake(host, table):
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(host.run_dir / "router.sock"))
    assert host.good("act", "deny", "alice") == ""


def test_a_router_that_refuses_is_reported_though_the_file_is_changed(host, table):
    def refuse(request):
        raise ConfigError("natf.act", 3, "found nonsense")

    with host.daemon("router", {"reload": refuse}):
        result = host.natf("act", "deny", "alice")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == (
        "the file is changed; the router could not be told and looks within a second: natf.act:3: found nonsense\n"
    )
    assert "192.168.0.2   deny" in table.read_text()
