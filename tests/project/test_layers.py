"""The shape of DESIGN.md section 6: imports go one way, and what decides does no input or output of its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "natf_bsd").rglob("*.py"))
}
LAYERS = (
    "types errors",
    "names keys counters",
    "tsig",
    "wire",
    "tables",
    "dns natd_bridge.pseudo",
    "natd_bridge.clock",
    "effects config datapath",
    "en router",
    "divert ops",
    "natd_bridge",
    "firewall",
    "datapath.ebpf",
    "datapath.netfilter datapath.ipfw_reverse",
    "ddns",
    "platforms",
    "doctor",
    "en.node router.node",
    "en.daemon router.daemon",
    "lab",
    "bench",
    "cli",
)
"""From the bottom. A part imports itself and what is below it, not its neighbour; the longest name that fits counts."""
LEVEL = {f"natf_bsd.{part}": level for level, row in enumerate(LAYERS) for part in row.split()} | {"natf_bsd": -1}
PURE = {
    "wire",
    "tables",
    "dns",
    "natd_bridge.pseudo",
    "natd_bridge.clock",
    "effects",
    "names",
    "counters",
    "en",
    "router",
}
OUTWARD = {"socket", "time", "select", "selectors", "logging", "threading", "subprocess", "asyncio"}


def part_of(module: str) -> str:
    while module not in LEVEL:
        module = module.rpartition(".")[0]
    return module


def imported(module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{module}: a relative import"
            inner = (f"{node.module}.{name.name}" for name in node.names)
            yield from (name if name in MODULES else node.module for name in inner)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_what_is_below_it(module: str) -> None:
    part = part_of(module)
    ours = {part_of(name) for name in imported(module) if name.partition(".")[0] == "natf_bsd"}
    assert module == "natf_bsd" or part != "natf_bsd", "in no layer"
    assert {name for name in ours - {part} if LEVEL[name] >= LEVEL[part]} == set()


@pytest.mark.parametrize("module", [name for name in MODULES if part_of(name).removeprefix("natf_bsd.") in PURE])
def test_what_decides_neither_looks_at_a_clock_nor_talks_to_anyone(module: str) -> None:
    assert {name.partition(".")[0] for name in imported(module)} & OUTWARD == set()
