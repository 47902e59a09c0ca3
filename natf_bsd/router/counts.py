"""What the router counts: every request received is answered, passed on or dropped, and the tests hold it to that."""

from __future__ import annotations

COUNTERS: dict[str, str] = {
    "request.received": "ICMP echo requests the kernel handed over",
    "request.passed": "ordinary pings, and packets no echo request could be read from, handed back to the kernel",
    "request.accepted": "mapping requests passed to the NAT",
    "request.drop.not_a_request": "NAT-f messages of a type only an external node receives",
    "request.drop.short": "requests below 128 bytes: an answer could be larger than its question (DESIGN.md section 5)",
    "request.drop.implausible": "requests from an address no external node has: this router's, loopback, class D or E",
    "request.drop.pending": "repetitions of a request that is with the NAT at this moment",
    "request.answered.again": "requests that came once more within seconds: the same answer, nothing asked of the NAT",
    "request.answered.challenge": "answered with a cookie",
    "request.answered.denied": "answered: denied (by the ACT, or no entry in it)",
    "request.answered.no_such_host": "answered: no such host (only with tell_unknown)",
    "request.answered.unsupported": "answered: protocol version, protocol, or an external node behind another NAT",
    "request.answered.out_of_resources": "answered: too many requests at the NAT, or of one source (source.over_rate)",
    "request.answered.malformed": "answered: malformed",
    "request.answered.key_required": "answered: key required",
    "request.answered.bad_key": "answered: bad key",
    "mapping.made": "mappings made and answered",
    "mapping.failed.no_answer": "pseudo-packets the NAT did not give back, twice",
    "mapping.failed.untranslated": "pseudo-packets the NAT gave back as they were",
    "mapping.failed.other_address": "mappings at another address than the one asked, which no external node believes",
    "pseudo.written": "pseudo-packets given to the NAT, second tries included",
    "pseudo.renumbered": "pseudo-packets given once more, because the first came back with an address not asked",
    "pseudo.retried": "pseudo-packets given to the NAT again",
    "captured.foreign": "packets captured behind the NAT that are no pseudo-packets: nothing else belongs there",
    "captured.late": "pseudo-packets whose request is no longer waiting",
    "source.over_rate": "requests beyond what one source may ask for (source_rate), answered: out of resources",
    "cookie.bad": "cookies that did not prove the sender's address",
}
