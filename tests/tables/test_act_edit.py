import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.errors import ConfigError, NatfError
from natf_bsd.tables import act

FILE = """\
# Hosts the outside may reach.
alice   192.168.0.2   allow                   # every port

bob     192.168.0.3   allow   tcp/80,443 udp/5000-5010
eve     192.168.0.4   deny                    # never
# The end.
"""


def test_a_new_line_stands_in_the_columns_of_the_one_before():
    assert act.add(FILE, "act", "carol", "192.168.0.5", "allow", ["tcp/22"]) == (
        FILE + "carol   192.168.0.5   allow   tcp/22\n"
    )


def test_a_new_line_uses_the_services_column_of_the_one_before():
    text = "bob 10.0.0.3 allow      tcp/80\n"
    assert act.add(text, "act", "al", "10.0.0.4", "deny", ["tcp/22", "udp/53"]) == (
        text + "al  10.0.0.4 deny       tcp/22 udp/53\n"
    )


def test_values_too_long_for_their_column_push_the_others():
    text = "bob 10.0.0.3 allow\n"
    assert act.add(text, "act", "longer-name", "192.168.100.200", "deny") == (
        text + "longer-name 192.168.100.200 deny\n"
    )


def test_a_file_of_tabs_stays_one():
    text = "bob\t10.0.0.3\tallow\n"
    assert act.add(text, "act", "al", "10.0.0.4", "allow", ["tcp/22"]) == text + "al\t10.0.0.4\tallow\ttcp/22\n"


@pytest.mark.parametrize("text", ["", "# none yet\n"])
def test_the_first_entry_has_columns_of_its_own(text):
    assert act.add(text, "act", "alice", "192.168.0.2", "allow", ["tcp/80"]) == (
        text + "alice   192.168.0.2     allow   tcp/80\n"
    )


def test_a_missing_last_line_end_is_supplied():
    assert act.add("# x", "act", "a", "10.0.0.1", "deny") == "# x\na       10.0.0.1        deny\n"


def test_line_ends_of_other_systems_are_kept():
    assert act.add("a 10.0.0.1 deny\r\n", "act", "b", "10.0.0.2", "deny") == "a 10.0.0.1 deny\r\nb 10.0.0.2 deny\r\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("Carol", "192.168.0.5", "allow", []), "found upper case in name 'Carol', expected 'carol'"),
        (("ca rol", "192.168.0.5", "allow", []), "found name 'ca rol'"),
        (("a\nmallory", "192.168.0.5", "allow", []), "found name 'a\\nmallory'"),
        (("carol", "192.168.0", "allow", []), "found address '192.168.0'"),
        (("carol", "192.168.0.5", "maybe", []), "found action 'maybe'"),
        (("carol", "192.168.0.5", "allow", ["#"]), "found service '#'"),
        (("carol", "192.168.0.5", "allow", ["tcp/22\nx"]), "found ports '22\\nx'"),
        (("alice", "192.168.0.5", "allow", []), "act:2: 'alice' is listed already, with 192.168.0.2"),
    ],
)
def test_add_refuses_bad_values(words, message):
    with pytest.raises(NatfError) as caught:
        act.add(FILE, "act", *words)
    assert str(caught.value).startswith(message)


def test_the_last_line_that_fits_is_added_and_no_further():
    text = "\n" * (act.MAXIMUM_LINES - 1)
    full = act.add(text, "act", "a", "10.0.0.1", "allow")
    with pytest.raises(ConfigError, match="found more than"):
        act.add(full, "act", "b", "10.0.0.2", "allow")


@pytest.mark.parametrize(
    ("name", "allow", "before", "after"),
    [
        ("alice", False, "192.168.0.2   allow   ", "192.168.0.2   deny   "),
        ("eve", True, "192.168.0.4   deny ", "192.168.0.4   allow "),
        ("bob", False, "allow   tcp/80,443 udp", "deny   tcp/80,443 udp"),
        ("bob", True, "", ""),
    ],
)
def test_set_action_changes_one_word_and_no_other_byte(name, allow, before, after):
    changed = act.set_action(FILE, "act", name, allow)
    assert changed == (FILE.replace(before, after) if before else FILE)
    assert act.parse(changed, "act").lookup(name).allow is allow


def test_set_action_is_not_misled_by_the_same_word_elsewhere():
    text = "allow 10.0.0.1 allow # allow\n"
    assert act.set_action(text, "act", "allow", False) == "allow 10.0.0.1 deny # allow\n"


def test_remove_takes_one_line_and_no_other_byte():
    line = "bob     192.168.0.3   allow   tcp/80,443 udp/5000-5010\n"
    assert act.remove(FILE, "act", "bob") == FILE.replace(line, "")
    assert act.remove("a 10.0.0.1 deny\nb 10.0.0.2 deny", "act", "b") == "a 10.0.0.1 deny\n"


@pytest.mark.parametrize("edit", [lambda n: act.set_action(FILE, "act", n, True), lambda n: act.remove(FILE, "act", n)])
@pytest.mark.parametrize("name", ["mallory", "Alice", "", "#"])
def test_a_name_that_is_not_listed_cannot_be_edited(edit, name):
    with pytest.raises(NatfError, match="is not listed"):
        edit(name)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: act.add(text, "act", "a", "10.0.0.1", "allow"),
        lambda text: act.set_action(text, "act", "a", True),
        lambda text: act.remove(text, "act", "a"),
    ],
)
def test_a_file_with_an_error_is_not_edited(edit):
    with pytest.raises(ConfigError, match="act:2: found 1 column"):
        edit("a 10.0.0.1 allow\noops\n")


NAMES = st.sampled_from(["a", "bb", "ccc-c", "d" * 40])
STEPS = st.lists(st.tuples(st.sampled_from(["add", "allow", "deny", "remove"]), NAMES), max_size=12)
STARTS = st.sampled_from(["", FILE, "# no end", FILE.replace("\n", "\r\n"), "x\t10.0.0.9\tdeny\n"])


@given(STARTS, STEPS)
def test_after_any_edits_the_file_says_what_was_done_and_keeps_its_comments(start, steps):
    text = start
    model = {entry.name: entry.allow for entry in act.parse(start, "act")}
    for step, name in steps:
        if (step == "add") == (name in model):
            continue
        if step == "add":
            text = act.add(text, "act", name, "10.1.2.3", "allow", ["tcp/80"])
            model[name] = True
        elif step == "remove":
            text = act.remove(text, "act", name)
            del model[name]
        else:
            model[name] = step == "allow"
            text = act.set_action(text, "act", name, model[name])
    assert {entry.name: entry.allow for entry in act.parse(text, "act")} == model
    kept = [line.rstrip() for line in text.split("\n") if line.startswith("#")]
    assert kept == [line.rstrip() for line in start.split("\n") if line.startswith("#")]
