"""The file of a TSIG key: what tsig-keygen writes, and what is said of anything else."""

from __future__ import annotations

from pathlib import Path

import dns.name
import dns.update
import pytest

from natf_bsd.errors import ConfigError, NatfError
from natf_bsd.tsig import ALGORITHMS, load_tsig_key

# tsig-keygen natf (BIND 9.18)
WRITTEN = """\
key "natf" {
	algorithm hmac-sha256;
	secret "c2VjcmV0IG9mIDMyIGJ5dGVzLCBhcyBpdCBpcyBtYWRlLi4=";
};
"""


def key_file(directory: Path, text: str, mode: int = 0o600) -> Path:
    path = directory / "key"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_what_tsig_keygen_writes_is_read(tmp_path: Path) -> None:
    key = load_tsig_key(key_file(tmp_path, WRITTEN))
    assert (key.name, key.algorithm, key.secret) == ("natf", "hmac-sha256", b"secret of 32 bytes, as it is made..")
    assert "secret" not in repr(key)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_dnspython_signs_with_every_algorithm_that_is_taken(tmp_path: Path, algorithm: str) -> None:
    key = load_tsig_key(key_file(tmp_path, WRITTEN.replace("hmac-sha256", algorithm)))
    signed = dns.update.UpdateMessage("example.net")
    signed.use_tsig({dns.name.from_text(key.name): key.secret}, algorithm=dns.name.from_text(key.algorithm))
    assert algorithm.encode() in signed.to_wire()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, WRITTEN, mode)
    with pytest.raises(NatfError, match=rf"key: mode {mode:04o} lets others at this key; expected 0600"):
        load_tsig_key(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "key:1: expected what tsig-keygen writes"),
        ("natf:c2VjcmV0", "key:1: expected what tsig-keygen writes"),
        (WRITTEN.replace("hmac-sha256", "rot13"), "key:2: algorithm rot13: expected one of hmac-sha256"),
        (WRITTEN.replace("c2Vj", "c2V"), "key:3: the secret is not base64"),
        (WRITTEN + WRITTEN, "key:1: expected what tsig-keygen writes"),
    ],
)
def test_anything_else_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_tsig_key(key_file(tmp_path, text))


def test_a_missing_key_is_told(tmp_path: Path) -> None:
    with pytest.raises(NatfError, match=r"key: No such file or directory; expected a key file \(tsig-keygen makes"):
        load_tsig_key(tmp_path / "key")
