"""The README's packet logger, run as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from natf_bsd.lab.figure1 import Figure1Lab
from tests.lab_platform import HERE

pytestmark = pytest.mark.lab

SEND = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.bind(("", 6000))
s.sendto(b"hello", ("203.0.113.80", 5000))
print(s.recv(100).decode())
"""


def test_the_packet_logger_logs_and_lets_pass(figure1: Figure1Lab) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    [program] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    logger = figure1.spawn("plain", [sys.executable, "-c", program], name="logger")
    try:
        with HERE.diverted(figure1, "plain", readme, logger):
            assert figure1.exec("en", ["python3", "-c", SEND]).stdout.strip() == "plain: hello"
            line = "in eth0: udp 203.0.113.10:6000 > 203.0.113.80:5000, 33 bytes"
            figure1.wait_until(lambda: line in logger.output(), logger)
    finally:
        logger.kill()
