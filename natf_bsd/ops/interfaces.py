"""The outer interface and its address, asked of the kernel (Linux: rtnetlink through pyroute2)."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from natf_bsd.errors import NatfError
from natf_bsd.types import Address, format_address, parse_address


@dataclass(frozen=True, slots=True)
class Interface:
    name: str
    address: Address

    def __str__(self) -> str:
        return f"{self.name} {format_address(self.address)}"


def outer_interface(wanted: str | None) -> Interface:
    """The interface `wanted`, else the default route's, with its first global IPv4 address; NatfError without."""
    if not sys.platform.startswith("linux"):
        raise NatfError(f"interfaces of {sys.platform} cannot be read yet; this version runs on Linux")
    # Imported here: it takes longer than the rest of the program together, and only a starting daemon needs it.
    try:
        from pyroute2 import IPRoute
    except ImportError:
        raise NatfError(
            "the Python package pyroute2 is missing; expected natf_bsd[linux] to be installed, or python3-pyroute2"
        ) from None

    with IPRoute() as routes:
        if wanted is None:
            wanted = _default_interface(routes)
        index = next(iter(routes.link_lookup(ifname=wanted)), None)
        if index is None:
            raise NatfError(
                f"there is no interface {wanted}; expected the outer one (interface = in the configuration)"
            )
        for message in routes.get_addr(family=2, index=index):
            if message.get("scope") == 0 and (text := message.get_attr("IFA_LOCAL")):
                return Interface(wanted, parse_address(text))
    raise NatfError(f"{wanted} has no IPv4 address; expected the public one")


def _default_interface(routes: object) -> str:
    for route in routes.get_default_routes(family=2):  # type: ignore[attr-defined]
        if index := route.get_attr("RTA_OIF"):
            name = routes.get_links(index)[0].get_attr("IFLA_IFNAME")  # type: ignore[attr-defined]
            return str(name)
    raise NatfError("no IPv4 default route; name the outer interface (interface = in the configuration)")
