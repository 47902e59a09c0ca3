"""The files a person writes: the configuration, and the router's access control table."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

from natf_bsd import config as configuration
from natf_bsd.config import Config, EnConfig, RouterConfig
from natf_bsd.doctor.finding import Finding, Severity
from natf_bsd.errors import NatfError
from natf_bsd.ops import act_file

_LARGEST: Final = 1 << 20
_TITLE: Final = "configuration"
_EXAMPLE: Final = "see docs/configuration.md; `[router]` alone is a router, `[en]` needs home_domains"


def text_of(path: Path) -> str:
    """The text of a file, at most a megabyte. Some names come from command lines, which anybody can write: a FIFO would
    keep us waiting, and a device would have no end. OSError says why not."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    with open(descriptor, encoding="utf-8", errors="replace") as file:
        return file.read(_LARGEST)


def settings(path: Path) -> tuple[Config, Finding]:
    """The settings to look with: those of the file, else the defaults of both roles."""
    defaults = Config(path, EnConfig(home_domains=("*",)), RouterConfig())
    if path == configuration.DEFAULT_PATH and not os.path.lexists(path):
        text = f"there is no {path}; this host is looked at for both roles, with the defaults"
        return defaults, Finding(Severity.NOTE, _TITLE, text, _EXAMPLE)
    try:
        found = configuration.load(path)
    except NatfError as error:
        text = f"{error}; this host is looked at for both roles, with the defaults"
        return defaults, _unusable(_TITLE, error, text, f"mend {path}")
    if found.en is None and found.router is None:
        text = f"{path} has neither [en] nor [router]; this host is looked at for both"
        return defaults, Finding(Severity.ERROR, _TITLE, text, _EXAMPLE)
    roles = " and ".join(f"[{name}]" for name in ("en", "router") if getattr(found, name) is not None)
    return found, Finding(Severity.OK, _TITLE, f"{path} has {roles}")


def access_table(router: RouterConfig) -> Finding:
    """Whether the table can be read, and lets anybody be reached."""
    title, path = "access control table", router.act
    try:
        table = act_file.load(path)
    except NatfError as error:
        remedy = f"mend {path}" if os.path.lexists(path) else f"touch {path}; natf act add alice 192.168.0.2 tcp/22"
        return _unusable(title, error, str(error), remedy)
    allowed = sum(entry.allow for entry in table)
    if not allowed:
        text = f"{path} allows nobody to be reached"
        return Finding(Severity.WARNING, title, text, "natf act add alice 192.168.0.2 tcp/22")
    return Finding(Severity.OK, title, f"{path} lets {allowed} of {len(table)} hosts be reached")


def _unusable(title: str, error: NatfError, text: str, remedy: str) -> Finding:
    """A file that only root may read is none that is wrong."""
    if isinstance(error.__context__, PermissionError) and os.geteuid() != 0:
        return Finding(Severity.NOTE, title, text, "run natf doctor as root")
    return Finding(Severity.ERROR, title, text, remedy)
