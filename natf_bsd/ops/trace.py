"""Trace points of negotiations: where a flow's first packet spends its time, in the parts of the paper's figure 7."""

from __future__ import annotations

from collections import OrderedDict, deque

_KEPT = 256
"""Finished negotiations kept for `natf status`."""

_OPEN = 4096
"""Negotiations begun and not yet finished; the same bound as the core's."""


class Trace:
    """Durations in seconds by stage, one dict per negotiation, newest last.

    External node: `arrived` by the clock of `precise`, `negotiation_start` from the packet's arrival to the request's
    sending, `answer_wait` from there to the router's answer, `resume` from the answer to the released packet's sending,
    `total` all three. Router: `router` from the request's arrival to the answer's sending.
    """

    def __init__(self) -> None:
        self.finished: deque[dict[str, object]] = deque(maxlen=_KEPT)
        self.answers: deque[float] = deque(maxlen=_KEPT)
        """Seconds each rewritten DNS answer took."""
        self._open: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def started(self, transaction: bytes, arrived: float, sent: float) -> None:
        """The first request went out; its later tries change nothing."""
        if transaction not in self._open:
            self._open[transaction] = (arrived, sent)
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)

    def ended(self, transaction: bytes, answered: float, resumed: float) -> None:
        begun = self._open.pop(transaction, None)
        if begun is None:
            return
        arrived, sent = begun
        self.finished.append(
            {
                "transaction": transaction.hex(),
                "arrived": arrived,
                "negotiation_start": sent - arrived,
                "answer_wait": answered - sent,
                "resume": resumed - answered,
                "total": resumed - arrived,
            }
        )

    def routed(self, transaction: bytes, sent: float) -> None:
        """The router's answer to a request it gave to the NAT (`started`) went out."""
        begun = self._open.pop(transaction, None)
        if begun is not None:
            self.finished.append({"transaction": transaction.hex(), "router": sent - begun[0]})

    def snapshot(self) -> dict[str, object]:
        return {"negotiations": list(self.finished), "answer_rewriting": list(self.answers)}
