"""Real DNS servers on the lab's hosts: one with authority, and resolvers between it and the external node."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from natf_bsd.lab.figure1 import Figure1Lab
from natf_bsd.lab.lab import LabProcess

AUTHORITY, ROUTER = "203.0.113.80", "203.0.113.1"
"""The host `plain`; G2."""

ZONE, SIGNED_ZONE = "example.net", "signed.example.org"

RECORDS = f"""\
$TTL 60
@ 0 SOA ns hostmaster 1 3600 600 86400 0
@ NS ns
ns A {AUTHORITY}
wildcard A {ROUTER}
*.wildcard A {ROUTER}
alias A {ROUTER}
*.alias CNAME alias
each A {ROUTER}
alice.each A {ROUTER}
bob.each A {ROUTER}
alice.chain CNAME one.chain
one.chain CNAME two.chain
two.chain CNAME alias
alice.several A {ROUTER}
alice.several A 203.0.113.2
alice.zero 0 A {ROUTER}
alice.both A {ROUTER}
alice.both AAAA 2001:db8::1
alice.hints A {ROUTER}
alice.hints HTTPS 1 . ipv4hint={ROUTER}
www.elsewhere 0 A {AUTHORITY}
www.elsewhere 0 AAAA 2001:db8::80
www.elsewhere 0 HTTPS 1 . ipv4hint={AUTHORITY}
www.elsewhere 0 TXT "an ordinary name"
"""

LONG, TOO_LONG = 60, 90
"""Addresses of alice.long and alice.toolong: more than fit into 512 bytes, and into the 1232 that servers send."""

SIGNED_RECORDS = f"""\
$TTL 60
@ SOA ns hostmaster 1 3600 600 86400 60
@ NS ns
ns A {AUTHORITY}
alice A {ROUTER}
www.elsewhere A {AUTHORITY}
"""


def zone_text() -> str:
    many = {"long": LONG, "toolong": TOO_LONG}
    lines = [f"alice.{name} A 203.0.113.{last}\n" for name, count in many.items() for last in range(1, count + 1)]
    return RECORDS + "".join(lines)


@dataclass(frozen=True, slots=True)
class Resolver:
    """A program between the external node's programs and the server with authority, on a host of the lab."""

    program: str
    host: str = "silent"
    address: str = "203.0.113.81"


RESOLVERS = {
    "dnsmasq": Resolver("dnsmasq"),
    "BIND": Resolver("named"),
    "unbound": Resolver("unbound"),
    "unbound on this host": Resolver("unbound", "en", "127.0.0.1"),
}


def find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin")


def missing(*programs: str) -> str | None:
    """The reason to skip a test that needs them."""
    lost = [program for program in programs if find(program) is None]
    return f"not installed: {', '.join(lost)}" if lost else None


class NameServers:
    """Servers on the hosts of `lab`, with files in `directory`."""

    def __init__(self, lab: Figure1Lab, directory: Path) -> None:
        self._lab = lab
        self._directory = directory
        self._ds = self._sign()

    def start_authority(self, key: Path | None = None, *names: str) -> LabProcess:
        """BIND, with both zones; with a TSIG `key` called natf that may change the A records of `names`."""
        (self._directory / "zone").write_text(zone_text())
        grants = "".join(f"grant natf name {name} A; " for name in names)
        policies = {ZONE: f"update-policy {{ {grants}}};" if key else "", SIGNED_ZONE: ""}
        zones = "".join(
            f'zone "{zone}" {{ type primary; file "{self._directory / file}"; {policies[zone]} }};\n'
            for zone, file in ((ZONE, "zone"), (SIGNED_ZONE, "signed"))
        )
        own = key.read_text() if key else ""
        return self._start_bind("plain", AUTHORITY, "recursion no; dnssec-validation no;", own + zones)

    def start_resolver(self, resolver: Resolver) -> LabProcess:
        """For the two zones alone; it validates."""
        if resolver.program == "named":
            options = "recursion yes; dnssec-validation yes;"
            return self._start_bind(resolver.host, resolver.address, options, self._bind_stubs())
        if resolver.program == "unbound":
            return self._start_unbound(resolver.host, resolver.address)
        return self._start_dnsmasq(resolver.host, resolver.address)

    def trust_anchor(self) -> Path:
        """For delv."""
        path = self._directory / "anchor"
        path.write_text(self._bind_anchor())
        return path

    def _sign(self) -> tuple[str, str, str, str]:
        """Make the signed zone; returns the data of its DS record."""
        (self._directory / "unsigned").write_text(SIGNED_RECORDS)
        key = self._run("dnssec-keygen", "-q", "-a", "ECDSAP256SHA256", "-f", "KSK", SIGNED_ZONE).strip()
        self._run("dnssec-signzone", "-q", "-z", "-S", "-o", SIGNED_ZONE, "-f", "signed", "unsigned")
        _, _, record = self._run("dnssec-dsfromkey", "-2", f"{key}.key").partition(" DS ")
        tag, algorithm, kind, digest = record.split()
        return tag, algorithm, kind, digest

    def _run(self, *argv: str) -> str:
        return subprocess.run(argv, cwd=self._directory, capture_output=True, text=True, check=True).stdout

    def _bind_anchor(self) -> str:
        tag, algorithm, kind, digest = self._ds
        return f'trust-anchors {{ {SIGNED_ZONE}. static-ds {tag} {algorithm} {kind} "{digest}"; }};\n'

    def _bind_stubs(self) -> str:
        stubs = (
            f'zone "{zone}" {{ type static-stub; server-addresses {{ {AUTHORITY}; }}; }};\n'
            for zone in (ZONE, SIGNED_ZONE)
        )
        return self._bind_anchor() + "".join(stubs)

    def _start_bind(self, host: str, address: str, options: str, rest: str) -> LabProcess:
        config = self._directory / f"named-{host}.conf"
        config.write_text(
            f'options {{ directory "{self._directory}"; listen-on {{ {address}; }}; listen-on-v6 {{ none; }};\n'
            'pid-file none; session-keyfile none; lock-file none; managed-keys-directory ".";\n'
            f"allow-query {{ any; }}; allow-recursion {{ any; }}; empty-zones-enable no; {options} }};\n"
            f"controls {{ }};\n{rest}"
        )
        return self._start(host, [self._program("named"), "-g", "-4", "-n", "1", "-c", str(config)], " running")

    def _start_unbound(self, host: str, address: str) -> LabProcess:
        config = self._directory / f"unbound-{host}.conf"
        # The root too, which has nothing: there is no way to the real one, and this host would wait for it.
        stubs = "".join(f'stub-zone:\n name: "{zone}"\n stub-addr: {AUTHORITY}\n' for zone in (ZONE, SIGNED_ZONE, "."))
        config.write_text(
            f'server:\n interface: {address}\n access-control: 0.0.0.0/0 allow\n do-ip6: no\n username: ""\n'
            f' chroot: ""\n directory: "{self._directory}"\n pidfile: ""\n use-syslog: no\n logfile: ""\n'
            " use-caps-for-id: yes\n"
            f' trust-anchor: "{SIGNED_ZONE}. DS {" ".join(self._ds)}"\nremote-control:\n control-enable: no\n{stubs}'
        )
        return self._start(host, [self._program("unbound"), "-d", "-c", str(config)], "start of service")

    def _start_dnsmasq(self, host: str, address: str) -> LabProcess:
        options = (
            *("no-daemon", "conf-file=/dev/null", "no-resolv", "no-hosts", "bind-interfaces"),
            *("dnssec", "dnssec-check-unsigned=no", f"trust-anchor=.,1,8,2,{'00' * 32}"),  # a root it must have
            f"listen-address={address}",
            f"server=/{ZONE}/{AUTHORITY}",
            f"server=/{SIGNED_ZONE}/{AUTHORITY}",
            f"trust-anchor={SIGNED_ZONE},{','.join(self._ds)}",
        )
        return self._start(host, [self._program("dnsmasq"), *(f"--{option}" for option in options)], "started")

    def _start(self, host: str, argv: Sequence[str], ready: str) -> LabProcess:
        process = self._lab.spawn(host, argv, name=f"{Path(argv[0]).name}-{host}")
        self._lab.wait_until(lambda: ready in process.output(), process)
        return process

    def _program(self, name: str) -> str:
        """A copy: Debian's AppArmor profiles, which go by path, let the originals read their own directories only."""
        copy = self._directory / name
        if not copy.exists():
            shutil.copy(find(name) or name, copy)
        return str(copy)
