"""From a role's configuration to all that is set up for it on this host, in one value."""

from __future__ import annotations

from dataclasses import dataclass

from natf_bsd.config import EnConfig, RouterConfig
from natf_bsd.firewall import linux
from natf_bsd.firewall.command import Check, Command, Sysctl
from natf_bsd.ops.interfaces import Interface

MARK_MASK = 0xFF000000
"""The byte of the packet mark that is ours; `mark` in the configuration is its value."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to look at first, what to do, and how to undo it whatever came of it."""

    role: str
    checks: list[Check]
    set_up: list[Command]
    sysctls: list[Sysctl]
    undo: list[Command]
    look: tuple[str, ...] = ()
    """The process that lists what is in force of it, for `guard`."""


def en(config: EnConfig, interface: Interface) -> Plan:
    """The external node's. On Linux its rules go by address and mark, whatever the `interface`."""
    rules = linux.EnFirewall(
        prefix=f"{config.virtual_prefix}.0.0.0/8",
        dns_queue=config.dns_queue,
        out_queue=config.out_queue,
        in_queue=config.in_queue,
        mark=config.mark,
        mask=MARK_MASK,
    )
    return Plan("en", linux.probe_en(rules), linux.en_rules(rules), [], linux.en_undo(), linux.en_look(interface.name))


def router(config: RouterConfig, interface: Interface) -> Plan:
    """The router's; its TUN device must be open already."""
    rules = linux.RouterFirewall(
        interface.name,
        interface.address,
        control_queue=config.control_queue,
        mark=config.mark,
        mask=MARK_MASK,
        tun=config.tun,
        table=config.route_table,
    )
    return Plan(
        "router",
        linux.probe_router(rules),
        linux.router_rules(rules),
        linux.router_sysctls(rules),
        linux.router_undo(table=config.route_table),
        linux.router_look(rules),
    )


def undo_all(config: RouterConfig) -> list[Command]:
    """Everything either role may have left behind; `config` says which routing table."""
    return [*linux.en_undo(), *linux.router_undo(table=config.route_table)]
