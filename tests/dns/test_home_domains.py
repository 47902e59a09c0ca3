import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.dns.names import HomeDomains
from natf_bsd.types import Name

HOMES = HomeDomains(["home.example.net", "Villa.Example.ORG."])
ANY = HomeDomains(["*"])
ALICE = Name("alice", "home.example.net")


@pytest.mark.parametrize(
    "qname", ["alice.home.example.net", "alice.home.example.net.", "ALICE.Home.Example.NET", "aLiCe.home.example.net."]
)
def test_one_label_before_a_home_domain_is_a_private_host_in_any_case(qname):
    assert HOMES.split(qname) == ALICE


def test_domains_are_folded_as_well():
    assert HOMES.split("bob.villa.example.org") == Name("bob", "villa.example.org")
    assert HOMES.domains == ("home.example.net", "villa.example.org")


@pytest.mark.parametrize(
    "qname",
    [
        "home.example.net",
        "a.b.home.example.net",
        "www.example.net",
        "alicehome.example.net",
        "example.net",
        "net",
        "",
        ".",
        ".home.example.net",
        "..home.example.net",
        "alice.home.example.net..",
        "al ice.home.example.net",
        "al\0ice.home.example.net",
        "*.home.example.net",
        "a" * 64 + ".home.example.net",
        "alice.\u212aome.example.net",
        "\u212a.home.example.net",
        "münchen.home.example.net",
    ],
)
def test_everything_else_is_not_ours(qname):
    assert HOMES.split(qname) is None


@pytest.mark.parametrize("label", ["x", "_http", "a-b", "xn--mnchen-3ya", "0", "a" * 63])
def test_what_a_host_option_can_carry_is_ours(label):
    assert HOMES.split(f"{label}.home.example.net") == Name(label, "home.example.net")


@pytest.mark.parametrize(
    ("qname", "name"),
    [
        ("alice.home.example.net", ALICE),
        ("www.example.net", Name("www", "example.net")),
        ("a.b.home.example.net", Name("a", "b.home.example.net")),
        ("example.net", None),
        ("net", None),
        ("", None),
        ("www.example..net", None),
        ("www.exa mple.net", None),
        ("w." + "a." * 126 + "aa", None),
    ],
)
def test_with_a_star_the_rest_is_the_home_domain_if_it_has_two_labels(qname, name):
    assert ANY.split(qname) == name


def test_with_a_star_a_listed_domain_itself_is_still_not_ours():
    homes = HomeDomains(["*", "home.example.net"])
    assert homes.split("home.example.net") is None
    assert homes.split("alice.home.example.net") == ALICE
    assert homes.split("www.example.com") == Name("www", "example.com")


def test_a_listed_domain_may_have_one_label():
    assert HomeDomains(["lan"]).split("alice.lan") == Name("alice", "lan")


def test_without_domains_nothing_is_ours():
    assert HomeDomains([]).split("alice.home.example.net") is None


@pytest.mark.parametrize(
    "domain", ["", ".", "a..b", "-*", "*.example.net", "münchen.de", "a b", "a" * 64, "a." * 126 + "aa"]
)
def test_what_is_no_domain_name_is_refused(domain):
    with pytest.raises(ValueError, match="found home domain"):
        HomeDomains([domain])


@given(st.text(max_size=40))
def test_any_text_is_split_into_what_the_wire_can_carry_or_not_at_all(text):
    for homes in (HOMES, ANY):
        name = homes.split(text)
        if name is not None:
            assert str(name) == text.removesuffix(".").lower()
            assert "." not in name.host
