"""The interface at which the programs are, and whether they are in force there."""

from __future__ import annotations

import errno
import logging
import os
import socket
from typing import Final

from natf_bsd.datapath.ebpf import kernel, programs
from natf_bsd.datapath.ebpf.interface import INWARD, NAMES, OUT, PLACES, Filters, link_header

log = logging.getLogger(__name__)

_NOWHERE: Final = 0


class Place:
    """Nowhere, until `settle`. `prefix` is the first byte of virtual addresses, `mark` within `mask` what translated
    packets carry inward."""

    def __init__(self, filters: Filters, maps: programs.Descriptors, *, prefix: int, mark: int, mask: int) -> None:
        self._filters, self._maps = filters, maps
        self._prefix, self._mark, self._mask = prefix, mark, mask
        self._attached: dict[str, int] = {}
        self.index = _NOWHERE
        """The interface's number."""
        self.attached_again = 0

    def settle(self, interface: str) -> str | None:
        """See to it that the programs are in force at `interface`, and nowhere else. Why they are not; None if they
        are. Where it fails those that are attached stay: they keep virtual addresses in."""
        try:
            index = _index_of(interface)
            if index != self.index or not self._are_attached():
                self._be_at(interface, index)
            return self._hidden(interface, index)
        except OSError as error:
            self.index = _NOWHERE
            return error.strerror or str(error)

    def unfit(self, interface: str) -> str | None:
        """What `settle` would say, as far as that can be told without attaching anything."""
        try:
            index = _index_of(interface)
            for place, instructions in self._code(interface).items():
                os.close(kernel.load(NAMES[place], instructions))
            self._filters.need_discipline(index)
            return self._hidden(interface, index)
        except OSError as error:
            return error.strerror or str(error)

    def _hidden(self, interface: str, index: int) -> str | None:
        hidden = [self._filters.hidden_by(index, place) for place in PLACES]
        return next((f"{found} on {interface} may keep packets from it" for found in hidden if found), None)

    def _code(self, interface: str) -> dict[str, bytes]:
        header = link_header(interface)
        return {
            INWARD: programs.vat_in(
                self._maps, prefix=self._prefix, link_header=header, mark=self._mark, mask=self._mask
            ),
            OUT: programs.vat_out(self._maps, prefix=self._prefix, link_header=header),
        }

    def _are_attached(self) -> bool:
        return all(self._filters.program(self.index, place) == program for place, program in self._attached.items())

    def _be_at(self, interface: str, index: int) -> None:
        """OSError with a reason one can read."""
        is_first = not self._attached
        for place, instructions in self._code(interface).items():
            program = kernel.load(NAMES[place], instructions)
            try:
                self._filters.attach(index, place, program)
            finally:
                os.close(program)
            attached = self._filters.program(index, place)
            if attached is None:
                raise OSError(errno.EIO, f"a filter that was set on {interface} is not there")
            self._attached[place] = attached
        self.index = index
        self._leave_others()
        self.attached_again += not is_first

    def _leave_others(self) -> None:
        for index, name in socket.if_nameindex():
            if index == self.index:
                continue
            try:
                self._filters.detach(index)
            except OSError as error:
                log.warning("programs may be left on %s (natf cleanup removes them): %s", name, error.strerror)


def _index_of(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        raise OSError(errno.ENODEV, f"there is no interface {interface}") from None
