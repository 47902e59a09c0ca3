import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.tables.virtual import VirtualAddresses
from natf_bsd.types import Name, format_address

ALICE = Name("alice", "home.example.net")
LABELS = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=63)


def test_with_a_key_the_addresses_are_others_and_as_stable():
    first, again, other = (
        list(VirtualAddresses(key=key).candidates(ALICE)) for key in (b"k" * 16, b"k" * 16, b"K" * 16)
    )
    assert first == again
    assert first[0][2:] != other[0][2:]
    assert first[0][2:] != next(VirtualAddresses().candidates(ALICE))[2:]
    assert all(0 < octet < 255 for octet in first[0][2:])


def documented_hash(text: str) -> int:
    return 1 + int(hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), 16) % 254


@given(LABELS, LABELS)
def test_candidates_follow_the_documented_formula(host, domain):
    candidates = list(VirtualAddresses().candidates(Name(host, domain)))
    c, d = documented_hash(domain), documented_hash(host)
    assert candidates == [bytes([240, b, c, d]) for b in range(256)]
    assert 1 <= c <= 254
    assert 1 <= d <= 254


def test_the_address_of_a_name_is_written_in_stone():
    assert format_address(next(VirtualAddresses().candidates(ALICE))) == "240.0.51.82"


def test_contains_knows_its_prefix_only():
    virtual = VirtualAddresses(241)
    assert virtual.contains(bytes([241, 0, 0, 1]))
    assert not virtual.contains(bytes([240, 0, 0, 1]))
    assert all(virtual.contains(address) for address in virtual.candidates(ALICE))


@pytest.mark.parametrize("octet", [-1, 0, 127, 224, 239, 255, 256])
def test_a_prefix_no_host_can_have_is_refused(octet):
    with pytest.raises(ValueError, match="virtual addresses can't begin with"):
        VirtualAddresses(octet)
