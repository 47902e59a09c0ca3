"""The recordings of FreeBSD 14.2 played through the model; what they hold is told by their README (issue 3, item 4).

Each module takes the events of one recording, in order, and a `Report`. tests/ipfw_model has the recordings, and the
tables of events left out.
"""

from natf_bsd.lab.ipfw_model.replay.report import Event, Report

__all__ = ["Event", "Report"]
