"""One running lab: a topology on a platform, its servers, and what is run on its hosts."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from natf_bsd.errors import NatfError
from natf_bsd.lab import capture, services
from natf_bsd.lab.platform import FIRST_INSTANCE, HostProcess, lab_platform
from natf_bsd.lab.topology import Host, ServiceKind, Topology, Zone

_START_TIMEOUT = 60.0
"""Seconds for anything to become ready, on an emulated machine busy with something else; one is usual."""

_POLL = 0.01
_TAIL = 40
"""Lines of each log that an error shows."""

SOURCE = Path(__file__).resolve().parents[2]
"""Where natf_bsd lies, for the processes started on hosts: it need not be installed."""


class LabProcess(subprocess.Popen[str]):
    """A process on a host. Unless told otherwise its output goes to `log` (appended), and it has no input."""

    def __init__(self, argv: Sequence[str], log: Path, **options: Any) -> None:
        self.log = log
        with log.open("ab") as output:
            self._start = output.tell()
            for name, default in {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}.items():
                options.setdefault(name, default)
            # A session of its own: Control-C is for the one who sits at the terminal, who then ends the lab in order.
            super().__init__(argv, text=True, start_new_session=True, **options)

    def output(self) -> str:
        """What this process wrote so far."""
        with self.log.open("rb") as log:
            log.seek(self._start)
            return log.read().decode(errors="replace")

    def stop(self, timeout: float = 30.0) -> int:
        """SIGTERM, then its exit status. NatfError, with its output, when that does not end it within `timeout` s."""
        self.terminate()
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            raise NatfError(f"{self.log.stem} did not end within {timeout:g} s of SIGTERM:\n{self.output()}") from None


@dataclass(frozen=True, slots=True)
class HostStatus:
    name: str
    location: str
    addresses: tuple[str, ...]
    processes: tuple[HostProcess, ...]


@dataclass(frozen=True, slots=True)
class LabStatus:
    up: bool
    made_of: str
    run_dir: Path
    hosts: tuple[HostStatus, ...]

    def __str__(self) -> str:
        if not self.up:
            return "not up" + "".join(f"\nleft over: {process.pid} {process.command}" for process in self._processes())
        lines = [f"up, files in {self.run_dir}", self.made_of]
        for host in self.hosts:
            lines.append(f"{host.name:<8} {host.location:<19} {', '.join(host.addresses)}")
            lines += [f"    {process.pid:>7}  {process.command}" for process in host.processes]
        return "\n".join(lines)

    def _processes(self) -> Iterator[HostProcess]:
        for host in self.hosts:
            yield from host.processes


class Lab:
    """A lab instance by its name, whoever started it: another process may use or end what this one made.

    As a context manager it is up inside and gone outside; leaving by an exception shows the logs on standard error.
    """

    def __init__(self, topology: Topology, instance: str) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", instance):
            raise NatfError(f"lab instance {instance!r}: expected at most 32 lower-case letters, digits and hyphens")
        self.topology = topology
        self.instance = instance
        self.platform = lab_platform(instance)
        self._children: list[subprocess.Popen[str]] = []
        self._servers: list[LabProcess] = []
        self._name_servers: list[LabProcess] = []

    @property
    def run_dir(self) -> Path:
        """Configuration, logs and state of this instance; gone after `down`."""
        return self.platform.run_dir

    @staticmethod
    def is_supported() -> str | None:
        """Why labs are impossible here, None when they are possible."""
        try:
            return lab_platform(FIRST_INSTANCE).is_supported()
        except NatfError as error:
            return str(error)

    def up(self) -> None:
        """Make the lab and return when every server of it has answered. Nothing to do when it is up.

        Remains of one that is not whole are removed first. NatfError with the logs when it fails; nothing is left then.
        """
        if reason := self.is_supported():
            raise NatfError(f"no lab on this machine: {reason}")
        with self._locked():
            if self.is_up():
                return
            self._remove()
            try:
                self._make()
            except BaseException as error:
                logs = self.report()
                self._remove()
                if isinstance(error, NatfError):
                    raise NatfError(f"{error}\n{logs}".rstrip()) from error
                raise

    def down(self) -> None:
        """End every process of the lab and remove everything, also after a crash, also when there is nothing."""
        with self._locked():
            self._remove()

    def is_up(self) -> bool:
        """Whether all of it is there: hosts, and every server the last `up` started."""
        try:
            servers = set(json.loads(self._complete.read_text()))
        except (OSError, ValueError):
            return False
        return self.platform.is_up(self.topology) and servers <= {process.pid for process in self.platform.processes()}

    def status(self) -> LabStatus:
        processes = self.platform.processes()
        hosts = tuple(self._host_status(host, processes) for host in self.topology.hosts)
        return LabStatus(self.is_up(), self.platform.description(), self.run_dir, hosts)

    def __enter__(self) -> Lab:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                sys.stderr.write(self.report())
        finally:
            # Also when nobody reads standard error any more (`natf demo 2>&1 | head`).
            self.down()

    # Running things.

    def argv(self, host: str, argv: Sequence[str], cwd: Path | None = None) -> list[str]:
        """The command line that runs `argv` on `host`, for an os.exec of the caller's. The process keeps its pid."""
        self.topology.host(host)
        if not self.platform.is_up(self.topology):
            raise NatfError(f"the lab {self.instance} is not up; natf lab up")
        return self.platform.exec_argv(host, argv, cwd or Path.cwd())

    def exec(self, host: str, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """subprocess.run on `host`, with its `options`. By default output is captured as text, with a limit of 60 s."""
        options.setdefault("text", True)
        if not options.keys() & {"stdout", "stderr", "capture_output"}:
            options["capture_output"] = True
            options.setdefault("timeout", 60)
        command = self.argv(host, argv, options.pop("cwd", None))
        done = subprocess.run(command, **self._with_source(options))
        # How the command gets there is of no interest to who reads this in a failed test.
        done.args = list(argv)
        return done

    def spawn(self, host: str, argv: Sequence[str], *, name: str | None = None, **options: Any) -> LabProcess:
        """Start `argv` on `host`, until the lab ends at the latest. Its log gets the `name`; `options` are Popen's."""
        log = self._log(f"{host}-{name or Path(argv[0]).name}")
        cwd = options.pop("cwd", Path("/"))
        process = LabProcess(self.argv(host, argv, cwd), log, **self._with_source(options))
        self._children.append(process)
        return process

    @contextlib.contextmanager
    def capture(self, host: str, interface: str) -> Iterator[capture.Capture]:
        """What passes `interface` of `host` inside the `with` block; `.packets()` works in it and after it.

        NatfError when it cannot start, or when it lost packets. The file stays with the lab.
        """
        path = self.run_dir / f"{host}-{interface}-{len(list(self.run_dir.glob('*.pcap')))}.pcap"
        argv = [sys.executable, "-m", "natf_bsd.lab.capture", interface, str(path)]
        process = self.spawn(host, argv, name=f"capture-{interface}")
        caught = capture.Capture(path)
        self.wait_until(lambda: caught.size() > 0, process)
        try:
            yield caught
        finally:
            status = process.stop()
            caught.running = False
        if status:
            raise NatfError(f"{process.log.stem}: {process.output().strip()}")

    def logs(self) -> dict[str, str]:
        """Everything every process wrote, by the name of its log ("alice-http")."""
        return {log.stem: log.read_text(errors="replace") for log in sorted(self._log_dir.glob("*.log"))}

    def report(self) -> str:
        """The end of every log, for a person who wants to know what went wrong."""
        parts = [f"--- {name}\n" + "\n".join(text.splitlines()[-_TAIL:]) for name, text in self.logs().items() if text]
        return "".join(f"{part}\n" for part in parts)

    def wait_until(self, condition: Callable[[], bool], process: LabProcess, timeout: float = _START_TIMEOUT) -> None:
        """Poll until `condition`; NatfError with the output of `process` when that ends before, or `timeout` s pass."""
        deadline = time.monotonic() + timeout
        while not condition():
            if process.poll() is not None:
                raise NatfError(f"{process.log.stem} ended with status {process.returncode}:\n{process.output()}")
            if time.monotonic() > deadline:
                raise NatfError(f"{process.log.stem} was not ready within {timeout:g} s:\n{process.output()}")
            time.sleep(_POLL)

    def serve_names(self, zone: Zone) -> None:
        """From now on DNS in this lab, which this object made, answers from `zone`. Returns when it does."""
        for server in self._name_servers:
            server.stop()
        self._name_servers = self._ready(list(self._start_name_servers(zone)))
        self._note_servers()

    # Making and removing.

    def write_files(self) -> None:
        """For a lab that needs files of its own in `run_dir`: called before anything runs."""

    def _make(self) -> None:
        self._log_dir.mkdir(parents=True)
        self.platform.up(self.topology)
        self.write_files()
        servers, name_servers = list(self._start_servers()), list(self._start_name_servers(self.topology.zone))
        self._servers, self._name_servers = self._ready(servers), self._ready(name_servers)
        self._wait_for_network()
        self._note_servers()

    def _start_servers(self) -> Iterator[tuple[LabProcess, str]]:
        for host in () if self.platform.has_servers else self.topology.hosts:
            for service in host.services:
                if service.kind is not ServiceKind.DNS:
                    argv, ready = services.command(service, host)
                    yield self.spawn(host.name, argv, name=service.kind.value), ready

    def _start_name_servers(self, zone: Zone) -> Iterator[tuple[LabProcess, str]]:
        dnsmasq = services.find_dnsmasq()
        for host, addresses in self.platform.name_servers(self.topology).items():
            # In a home's own server answers would not pass the router's outer side, where they become virtual.
            if self.topology.is_home(host):
                argv, ready = services.relay_command(addresses, self.topology.nameserver)
            else:
                argv, ready = services.dns_command(zone, addresses, dnsmasq)
            yield self.spawn(host, argv, name="dns"), ready

    def _ready(self, servers: Sequence[tuple[LabProcess, str]]) -> list[LabProcess]:
        """The servers, as soon as all of them listen."""
        for server, text in servers:
            self.wait_until(partial(_has_written, server, text), server)
        return [server for server, _ in servers]

    def _note_servers(self) -> None:
        self._complete.write_text(json.dumps([server.pid for server in (*self._servers, *self._name_servers)]))

    def _wait_for_network(self) -> None:
        """Reach every server from a neighbour: listening is not enough, a new link takes its time to carry packets."""
        waits = [
            self.spawn(prober.name, [*services.MODULE, "wait", f"--timeout={_START_TIMEOUT:g}", *targets], name="wait")
            for prober, targets in probes(self.topology)
        ]
        for wait in waits:
            if wait.wait():
                raise NatfError(f"{wait.log.stem}: {wait.output().strip()}")

    def _remove(self) -> None:
        self.platform.down(self.topology)
        for child in self._children:
            child.wait()
        self._children.clear()
        shutil.rmtree(self.run_dir, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Only one process at a time makes or removes labs. Leaves `run_dir` gone or full, its parent gone if empty."""
        root = self.run_dir.parent
        descriptor = _lock_directory(root)
        try:
            self.run_dir.mkdir(exist_ok=True)
            yield
        finally:
            for directory in (self.run_dir, root):
                with contextlib.suppress(OSError):
                    directory.rmdir()
            os.close(descriptor)

    def _host_status(self, host: Host, processes: Sequence[HostProcess]) -> HostStatus:
        addresses = tuple(interface.address for interface in host.interfaces)
        own = tuple(process for process in processes if process.host == host.name)
        return HostStatus(host.name, self.platform.location(host.name), addresses, own)

    @staticmethod
    def _with_source(options: dict[str, Any]) -> dict[str, Any]:
        environment = options.get("env") or os.environ
        path = os.pathsep.join(filter(None, (str(SOURCE), environment.get("PYTHONPATH", ""))))
        return options | {"env": {**environment, "PYTHONPATH": path}}

    @property
    def _complete(self) -> Path:
        return self.run_dir / "complete"

    @property
    def _log_dir(self) -> Path:
        return self.run_dir / "log"

    def _log(self, name: str) -> Path:
        return self._log_dir / f"{name}.log"


def _has_written(process: LabProcess, text: str) -> bool:
    return text in process.output()


def probes(topology: Topology) -> Iterator[tuple[Host, list[str]]]:
    """For each segment one host, and what it must be able to reach there (`services.wait_for`).

    It is the one that does NAT, if there is one: an ordinary home router does not answer who knocks from outside.
    """
    for segment in topology.segments:
        ports = topology.ports(segment)
        prober = next((host for host, _ in ports if host.nat), ports[0][0])
        others = [(host, port) for host, port in ports if host is not prober and not (host.nat or host.bridges)]
        targets = [target for host, port in others for target in _targets(host, port.address)]
        if targets:
            yield prober, targets


def _targets(host: Host, address: str) -> list[str]:
    found = [f"{service.kind.value}:{address}:{service.port}" for service in host.services]
    # Port 9, discard: nobody is there, so the kernel refuses the connection.
    return found or [f"host:{address}:9"]


def _lock_directory(path: Path) -> int:
    """Make directory `path`, private, and hold its lock. Whoever had it before may have removed it: then once more."""
    while True:
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise NatfError(f"{path}: {error.strerror}; expected to make a directory of ours there") from None
        if (owner := os.fstat(descriptor).st_uid) != os.geteuid():
            os.close(descriptor)
            raise NatfError(f"{path}: belongs to user {owner}; expected to make a directory of ours there")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)
