"""Netlink by hand against bytes written down from the kernel's headers (little-endian hosts)."""

from __future__ import annotations

import errno
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natf_bsd.divert import netlink
from tests import spaces

little_endian = pytest.mark.skipif(sys.byteorder == "big", reason="golden bytes are little-endian")
lab = pytest.mark.lab
needs_lab = pytest.mark.skipif(spaces.unsupported() is not None, reason=str(spaces.unsupported()))


@little_endian
@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [(1, b"", "04000100"), (3, b"\1", "0500030001000000"), (0x8001, b"\1\2\3\4", "0800018001020304")],
)
def test_an_attribute_is_length_type_value_and_padding(kind: int, value: bytes, expected: str) -> None:
    assert netlink.attribute(kind, value).hex() == expected


@given(st.integers(0, 0xFFFF), st.binary(max_size=40))
def test_attributes_are_aligned_and_keep_their_value(kind: int, value: bytes) -> None:
    packed = netlink.attribute(kind, value)
    length, found = netlink.ATTRIBUTE.unpack_from(packed)
    assert (found, packed[4:length]) == (kind, value)
    assert len(packed) == netlink.align(length)
    assert packed[length:] == bytes(len(packed) - length)


@little_endian
def test_a_message_is_header_and_body() -> None:
    assert (
        netlink.message(0x0302, netlink.NLM_F_REQUEST, 7, b"body").hex() == "14000000020301000700000000000000626f6479"
    )


@little_endian
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("24000000020000000000000000000000ffffffff", 1),  # -EPERM, cut behind the errno as by MSG_PEEK
        ("2400000002000000000000000000000000000000", 0),  # an acknowledgement
        ("1400000000030000000000000000000000000000", None),  # a packet
        ("24000000020000000000000000000000ffff", None),  # too short to hold an errno
    ],
)
def test_an_error_message_is_told_from_other_datagrams(data: str, expected: int | None) -> None:
    assert netlink.error_of(bytes.fromhex(data)) == expected


@lab
@spaces.LINUX
@needs_lab
@spaces.isolated
def test_what_the_kernel_refuses_is_raised_with_its_errno_and_the_socket_stays_usable() -> None:
    connection = netlink.NetlinkSocket(netlink.NETLINK_NETFILTER)
    for _ in range(2):
        with pytest.raises(OSError, match=r".") as refused:
            connection.request(3 << 8 | 2, bytes(4) + netlink.attribute(2, bytes(5)))  # parameters of an unbound queue
        assert refused.value.errno == errno.ENODEV
    connection.close()
