"""What a host name and a domain may be: in one place, for the wire and for what users write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.names import folded, is_domain, is_label, is_written_domain, is_written_label
from natf_bsd.types import Name
from natf_bsd.wire.message import valid_name


@pytest.mark.parametrize("label", ["-a", "a-", "-", "--"])
def test_a_hyphen_at_an_end_is_taken_from_the_wire_and_not_from_a_user(label: str) -> None:
    assert is_label(label)
    assert is_domain(f"{label}.net")
    assert not is_written_label(label)
    assert not is_written_domain(f"{label}.net")


@pytest.mark.parametrize("label", ["", "A", "a.b", "a b", "é", "a\n", "a" * 64])
def test_what_no_label_is(label: str) -> None:
    assert not is_label(label)
    assert not is_written_label(label)


@given(st.text("ab1_-.", max_size=300))
def test_the_wire_carries_whatever_a_user_may_write(text: str) -> None:
    assert is_label(text) or not is_written_label(text)
    assert is_domain(text) or not is_written_domain(text)
    assert valid_name(Name("alice", text)) == is_domain(text)


def test_a_home_domain_has_two_labels_and_fits_a_dns_message() -> None:
    longest = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
    assert is_written_domain(longest)
    assert not is_written_domain(longest + "d")
    assert not is_domain(longest + "d")
    assert is_domain("localdomain")
    assert not is_written_domain("localdomain")


@pytest.mark.parametrize(("text", "name"), [("Home.Example.", "home.example"), ("a..", "a."), ("\u212a.net", None)])
def test_names_are_compared_without_case_and_final_dot(text: str, name: str | None) -> None:
    """The Kelvin sign is a letter that str.lower makes an ASCII k of."""
    assert folded(text) == name
