"""Real servers on the lab's host alice, and for each application what a stock client on the external node runs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from natf_bsd.lab.figure1 import Figure1Lab
from natf_bsd.lab.netns import is_true_root
from tests.e2e.name_servers import find, missing

HOME = "home.example.net"

FORGETS = 2
"""Seconds after which the router's NAT forgets a mapping while a `forgetful` application runs, so that no pause has to
be long: really it is minutes, or days."""

SHORT, LONG = FORGETS / 2, FORGETS + 1
"""Seconds of pauses: less than that, and more."""

TIMERS = [
    f"net.netfilter.nf_conntrack_{name}" for name in ("udp_timeout", "udp_timeout_stream", "tcp_timeout_established")
]

FILE = "".join(f"line {number}\n" for number in range(2_000))
"""Several segments, and few enough that a capture in a user namespace, with its small buffer, loses none."""

SIP_SERVER = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 5060))
while True:
    data, caller = s.recvfrom(2048)
    word, _, pause = data.decode().partition(" ")
    if word == "REGISTER":
        s.sendto(b"200 registered", caller)
        time.sleep(float(pause))
        s.sendto(b"INVITE", caller)
    elif word == "200":
        s.sendto(b"ACK", caller)
"""
"""What the caller sends in the pause waits, and is nobody's business."""

SIP_CLIENT = """
import socket, sys, time
name, pause, keep_alive = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((name, 5060))
s.settimeout(10)
s.send(f"REGISTER {pause}".encode())
print(s.recv(2048).decode())
end = time.monotonic() + pause
while keep_alive and time.monotonic() < end - keep_alive:
    s.send(b"\\r\\n\\r\\n")
    time.sleep(keep_alive)
print(s.recv(2048).decode())
s.send(b"200 answered")
print(s.recv(2048).decode())
"""
"""Connected: the kernel lets in what comes from the address that was called alone."""

HALF_CLOSED_SERVER = """
import socket, time
with socket.create_server(("", 7000)) as server:
    while True:
        connection, _ = server.accept()
        with connection:
            asked = 0
            while data := connection.recv(65536):
                asked += len(data)
            time.sleep(1)
            connection.sendall(b"%d bytes read to the end\\n" % asked + bytes(5_000_000) + b"and this is the end")
"""

HALF_CLOSED_CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000), 10) as s:
    s.sendall(bytes(100_000))
    s.shutdown(socket.SHUT_WR)
    reply = b"".join(iter(lambda: s.recv(65536), b""))
print(reply.strip(b"\\0").replace(bytes(5_000_000), b"").decode())
"""


@dataclass(frozen=True, slots=True)
class Application:
    """`argv` runs on the external node, with alice's name for NAME and the directory of `ApplicationServers` for DIR;
    if it is `forgetful`, the router's NAT is so meanwhile.

    It has gone as it should if its exit status is 0 and `says`, a regular expression, is found in what it wrote:
    `outcome` is the word for that.
    """

    protocol: str
    server: str
    client: str
    argv: tuple[str, ...]
    says: str
    outcome: str = "works"
    forgetful: bool = False


CURL = ("curl", "-sS", "--max-time", "15")


def _curl_ftp(*options: str) -> Application:
    url = "ftp://NAME/copied"
    argv = (*CURL, *options, "--upload-file", "DIR/file", url, url, "ftp://NAME/")
    return Application("TCP", "vsftpd", "curl", argv, f"{FILE}.* copied\n")


def _lftp(*settings: str) -> Application:
    common = ("cmd:fail-exit yes", "net:max-retries 1", "net:timeout 10", "ftp:ssl-allow no")
    lines = [f"set {setting}" for setting in (*common, *settings)]
    lines += ["open ftp://NAME", "put DIR/file -o copied", "cat copied", "ls"]
    return Application("TCP", "vsftpd", "lftp", ("lftp", "--norc", "-c", "; ".join(lines)), f"{FILE}.* copied\n")


def _http(*options: str) -> Application:
    """Two requests, the second of which opens no connection."""
    argv = (*CURL, "--write-out", "%{num_connects} new\n", *options, "http://NAME/", "http://NAME/")
    return Application("TCP", "http.server", "curl", argv, r"\n1 new\n.*\n0 new\n")


def _idle(pause: float, *options: str) -> Application:
    return replace(_http("--rate", f"{60 / pause:g}/m", *options), forgetful=True)


def _at_once(requests: int) -> Application:
    argv = (*CURL, "--parallel", "--parallel-immediate", "--parallel-max", f"{requests}")
    every = rf"^(This is alice's page\.\nYou are [^\n]*\n){{{requests}}}$"
    return Application("TCP", "http.server", "curl", (*argv, *["http://NAME/"] * requests), every)


def _ssh(*argv: str, says: str) -> Application:
    options = ("BatchMode=yes", "IdentitiesOnly=yes", "HostKeyAlias=alice", "StrictHostKeyChecking=yes")
    files = ("-F", "none", "-i", "DIR/key", *(part for option in options for part in ("-o", option)))
    known = ("-o", "UserKnownHostsFile=DIR/known", "-o", "ConnectTimeout=10")
    return Application("TCP", "sshd", argv[0], (argv[0], *files, *known, *argv[1:]), says)


def _sip(pause: float, keep_alive: float = 0) -> Application:
    argv = (sys.executable, "-c", SIP_CLIENT, "NAME", str(pause), str(keep_alive))
    return Application("UDP", "socket", "socket", argv, "^200 registered\nINVITE\nACK\n$", forgetful=True)


def _iperf3(*options: str, protocol: str = "TCP") -> Application:
    return Application(protocol, "iperf3", "iperf3", ("iperf3", "-c", "NAME", "-t", "1", *options), "iperf Done")


APPLICATIONS = {
    "FTP active (PORT)": _curl_ftp("--ftp-port", "-", "--disable-eprt"),
    "FTP active (EPRT)": _curl_ftp("--ftp-port", "-"),
    "FTP active": _lftp("ftp:passive-mode off"),
    "FTP passive (PASV)": _curl_ftp("--disable-epsv"),
    "FTP passive": _lftp("ftp:prefer-epsv off"),
    "FTP extended passive (EPSV)": _curl_ftp(),
    "FTP extended passive": _lftp("ftp:prefer-epsv on"),
    "SSH command": _ssh("ssh", "NAME", "cat", "DIR/file", says=FILE),
    "SSH copy": _ssh("scp", "DIR/file", "NAME:DIR/by-scp", says=""),
    "HTTP keep-alive": _http(),
    "HTTP, 100 requests at once": _at_once(100),
    "idle TCP": _idle(SHORT, "--no-keepalive"),
    "idle TCP for longer than the NAT remembers": replace(
        _idle(LONG, "--no-keepalive"), says=r"\n1 new\n.*\n1 new\n", outcome="lost; the next connection works"
    ),
    "idle TCP for longer than the NAT remembers, with keep-alive": _idle(LONG, "--keepalive-time", "1"),
    "half-closed TCP, long reply": Application(
        "TCP",
        "socket",
        "socket",
        (sys.executable, "-c", HALF_CLOSED_CLIENT, "NAME"),
        "^100000 bytes read to the end\nand this is the end\n$",
    ),
    "SIP-like, called back after a pause": _sip(SHORT),
    "SIP-like, called back after longer than the NAT remembers, with keep-alive": _sip(LONG, keep_alive=0.5),
    "iperf3 to alice": _iperf3(),
    "iperf3 from alice": _iperf3("--reverse"),
    "iperf3 both ways at once": _iperf3("--bidir"),
    "iperf3 both ways at once, datagrams": _iperf3("--udp", "--bidir", protocol="UDP"),
}


def has_gone_well(application: Application, done: subprocess.CompletedProcess[str]) -> bool:
    return done.returncode == 0 and re.search(application.says, done.stdout, re.DOTALL) is not None


def missing_for(application: Application) -> str | None:
    """The reason to leave it out here."""
    if application.server == "sshd" and not is_true_root():
        return "sshd becomes another user, so it needs to be the machine's root"
    stock = {application.server, application.client} - {"socket", "http.server"}
    return missing(*sorted(stock))


class ApplicationServers:
    """Servers on alice, those whose program is installed, until the lab ends; with files in `directory`."""

    def __init__(self, lab: Figure1Lab, directory: Path) -> None:
        self._lab = lab
        self._directory = directory
        (directory / "file").write_text(FILE)
        self._start("sip", [sys.executable, "-c", SIP_SERVER], 5060, "--udp")
        self._start("half-closed", [sys.executable, "-c", HALF_CLOSED_SERVER], 7000)
        for program, start in {"vsftpd": self._vsftpd, "sshd": self._sshd, "iperf3": self._iperf3}.items():
            if found := find(program):
                start(found)

    def run(self, application: Application, domain: str = HOME) -> subprocess.CompletedProcess[str]:
        texts = {"NAME": f"alice.{domain}", "DIR": str(self._directory)}
        argv = [re.sub("NAME|DIR", lambda found: texts[found[0]], part) for part in application.argv]
        with self._forgetting() if application.forgetful else nullcontext():
            return self._lab.exec("en", argv)

    @contextmanager
    def _forgetting(self) -> Iterator[None]:
        before = self._lab.exec("router", ["sysctl", *TIMERS], check=True).stdout
        self._lab.exec("router", ["sysctl", "-w", *(f"{name}={FORGETS}" for name in TIMERS)], check=True)
        try:
            yield
        finally:
            self._lab.exec("router", ["sysctl", "-p", "-"], input=before, check=True)

    def _vsftpd(self, program: str) -> None:
        served = self._directory / "ftp"
        served.mkdir()
        settings = {
            **dict.fromkeys(("listen", "anonymous_enable", "write_enable", "anon_upload_enable"), "YES"),
            **dict.fromkeys(("anon_other_write_enable", "allow_writeable_chroot", "run_as_launching_user"), "YES"),
            **dict.fromkeys(("background", "seccomp_sandbox", "isolate", "isolate_network"), "NO"),
            "anon_world_readable_only": "NO",
            "anon_root": served,
            "anon_umask": "022",
            "ftp_username": "root",
        }
        config = self._directory / "vsftpd.conf"
        config.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        self._start("vsftpd", [program, str(config)], 21)

    def _sshd(self, program: str) -> None:
        for name in ("key", "host_key"):
            path = str(self._directory / name)
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
        (self._directory / "known").write_text(f"alice {(self._directory / 'host_key.pub').read_text()}")
        options = {
            "HostKey": self._directory / "host_key",
            "AuthorizedKeysFile": self._directory / "key.pub",
            "AuthenticationMethods": "publickey",
            "PermitRootLogin": "prohibit-password",
            # Its files are not where a home directory's would be, and who tests may be no user of PAM.
            **dict.fromkeys(("StrictModes", "UsePAM", "UseDNS"), "no"),
            "PidFile": "none",
            "Subsystem": "sftp internal-sftp",
        }
        arguments = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        # Its own /run: it wants a directory there, and the machine's own is none of ours.
        script = 'mount -t tmpfs natf-sshd /run && mkdir -m 755 /run/sshd && exec "$@"'
        argv = ["sh", "-c", script, "sh", program, "-D", "-e", "-f", "/dev/null", *arguments]
        self._start("sshd", argv, 22)

    def _iperf3(self, program: str) -> None:
        self._start("iperf3", [program, "-s"], 5201)

    def _start(self, name: str, argv: Sequence[str], port: int, kind: str = "--tcp") -> None:
        process = self._lab.spawn("alice", argv, name=name)
        listening = ["ss", "--no-header", "--numeric", "--listening", kind, f"sport = :{port}"]
        self._lab.wait_until(lambda: bool(self._lab.exec("alice", listening).stdout), process)
