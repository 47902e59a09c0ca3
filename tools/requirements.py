"""Print the requirements of setup.cfg that this Python does not have, one per line.

Usage: requirements.py EXTRA,...   The packages of install_requires, and those of each EXTRA, by their metadata.
"""

import configparser
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

SETUP = Path(__file__).resolve().parent.parent / "setup.cfg"


def wanted(extras: list[str]) -> Iterator[str]:
    parser = configparser.ConfigParser()
    parser.read(SETUP, encoding="utf-8")
    yield from parser["options"]["install_requires"].split("\n")
    for extra in extras:
        yield from parser["options.extras_require"][extra].split("\n")


def release(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.split("+")[0])]


def lack(requirement: str) -> str | None:
    """Why `requirement` ("name >= version ; marker") is not met, or None. Markers are not evaluated."""
    name, _, least = (part.strip() for part in requirement.partition(";")[0].partition(">="))
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} >= {least}"
    return f"{name} >= {least} (found {found})" if release(found) < release(least) else None


def main() -> None:
    extras = [extra for extra in sys.argv[1].split(",") if extra]
    for requirement in filter(str.strip, wanted(extras)):
        if missing := lack(requirement):
            sys.stdout.write(f"{missing}\n")


main()
