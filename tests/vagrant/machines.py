"""The machines as data, and what of them a provisioning script is told."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
VAGRANT = ROOT / "vagrant"
LAB: dict[str, Any] = json.loads((VAGRANT / "machines.json").read_text())
MACHINES: dict[str, dict[str, Any]] = LAB["machines"]
SHELL_SCRIPTS = [path for path in sorted((VAGRANT / "provision").iterdir()) if path.is_file()] + [VAGRANT / "e2e"]


@dataclass(frozen=True, slots=True)
class Link:
    name: str
    network: str
    mac: str
    addresses: tuple[str, ...]


def links(machine: str) -> list[Link]:
    found = []
    for text in MACHINES[machine]["links"]:
        name, network, mac, addresses = text.split()
        found.append(Link(name, network, mac, tuple(addresses.split(","))))
    return found


def environment(machine: str) -> dict[str, str]:
    """As the Vagrantfile hands it to each step."""
    facts = MACHINES[machine]
    return {
        "NATF_SOURCE": LAB["source"],
        "NATF_HOST": machine,
        "NATF_LINKS": ";".join(facts["links"]),
        "NATF_GATEWAY": facts["gateway"],
        "NATF_NAMESERVER": LAB["nameserver"],
        "NATF_PYTHON": f"/usr/local/bin/python{LAB['python']}",
        "NATF_PACKAGES": " ".join(LAB["packages"] + facts.get("packages", [])),
        "NATF_ROLES": " ".join(facts.get("roles", [])),
        "NATF_SERVICES": " ".join(facts.get("services", [])),
    }
