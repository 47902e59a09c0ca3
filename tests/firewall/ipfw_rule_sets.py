"""What `ipfw -S list` prints of the rule sets that /etc/rc.firewall of FreeBSD 14 makes, and of some others.

em0 is the outer interface (203.0.113.1), em1 the inner one (192.168.0.0/24).
"""

from __future__ import annotations

from natf_bsd.firewall.ipfw_rules import Rule, parse_rules
from natf_bsd.ops.interfaces import Interface
from natf_bsd.types import parse_address

OUTER = Interface("em0", parse_address("203.0.113.1"))

LOOPBACK = """\
00100 set 0 allow ip from any to any via lo0
00200 set 0 deny ip from any to 127.0.0.0/8
00300 set 0 deny ip from 127.0.0.0/8 to any
00400 set 0 deny ip from any to ::1
00500 set 0 deny ip from ::1 to any
00600 set 0 allow ipv6-icmp from :: to ff02::/16
00700 set 0 allow ipv6-icmp from fe80::/10 to fe80::/10
00800 set 0 allow ipv6-icmp from fe80::/10 to ff02::/16
00900 set 0 allow ipv6-icmp from any to any icmp6types 1
01000 set 0 allow ipv6-icmp from any to any icmp6types 2,135,136
"""
DEFAULT = "65535 set 31 deny ip from any to any\n"
NATD = "00050 set 0 divert 8668 ip4 from any to any via em0\n"
KERNEL_NAT = "00050 set 0 nat 123 ip4 from any to any via em0\n"

OPEN = LOOPBACK + "65000 set 0 allow ip from any to any\n" + DEFAULT

CLIENT = f"""\
{LOOPBACK}01100 set 0 allow ip from 203.0.113.0/24 to 255.255.255.255
01200 set 0 allow ip from me to 203.0.113.0/24
01300 set 0 allow ip from 203.0.113.0/24 to me
01400 set 0 allow tcp from any to any established
01500 set 0 allow ip from any to any frag
01600 set 0 allow tcp from any to me 25 setup
01700 set 0 allow tcp from me to any setup
01800 set 0 deny tcp from any to any setup
01900 set 0 allow udp from me to any 53 keep-state :default
02000 set 0 allow udp from me to any 123 keep-state :default
{DEFAULT}"""

SIMPLE = f"""\
{LOOPBACK}01100 set 0 deny ip from 192.168.0.0/24 to any in via em0
01200 set 0 deny ip from 203.0.113.0/24 to any in via em1
01300 set 0 deny ip from any to table(13) via em0
01400 set 0 divert 8668 ip4 from any to any via em0
01500 set 0 deny ip from table(13) to any via em0
01600 set 0 allow tcp from any to any established
01700 set 0 allow ip from any to any frag
01800 set 0 allow tcp from any to me 25 setup
01900 set 0 allow tcp from any to me 53 setup
02000 set 0 allow udp from any to me 53
02100 set 0 allow udp from me 53 to any
02200 set 0 allow tcp from any to me 80 setup
02300 set 0 deny log ip4 from any to any in via em0 setup proto tcp
02400 set 0 allow tcp from any to any setup
02500 set 0 allow udp from me to any 53 keep-state :default
02600 set 0 allow udp from me to any 123 keep-state :default
{DEFAULT}"""

BAD_ADDRESSES = """\
--- table(13), set(0) ---
0.0.0.0/8 0
10.0.0.0/8 0
169.254.0.0/16 0
172.16.0.0/12 0
192.0.2.0/24 0
192.168.0.0/16 0
224.0.0.0/4 0
240.0.0.0/4 0
"""

WORKSTATION = f"""\
{LOOPBACK}01100 set 0 check-state :default
01200 set 0 allow tcp from me to any established
01300 set 0 allow tcp from me to any setup keep-state :default
01400 set 0 allow udp from me to any keep-state :default
01500 set 0 allow icmp from me to any keep-state :default
01600 set 0 allow ipv6-icmp from me to any keep-state :default
01700 set 0 allow udp from 0.0.0.0 68 to 255.255.255.255 67 out
01800 set 0 allow udp from any 67 to me 68 in
02000 set 0 allow icmp from any to any icmptypes 8
65000 set 0 count ip from any to any
65100 set 0 deny ip from any to any
{DEFAULT}"""

SPLIT = f"""\
00010 set 0 allow ip from any to any via lo0
00020 set 0 allow ip from any to any via em1
00100 set 0 nat 1 ip from any to any in via em0
00101 set 0 check-state :default
00120 set 0 skipto 1000 udp from any to any 53 out via em0 keep-state :default
00125 set 0 skipto 1000 tcp from any to any out via em0 setup keep-state :default
00999 set 0 deny log ip from any to any
01000 set 0 nat 1 ip from any to any out via em0
01001 set 0 allow ip from any to any
{DEFAULT}"""
"""The way of FreeBSD's handbook to a stateful firewall with NAT: a rule for each direction."""


def rules(listing: str) -> tuple[Rule, ...]:
    """Sorted by number, as ipfw prints them."""
    return tuple(sorted(parse_rules(listing), key=lambda rule: rule.number))
