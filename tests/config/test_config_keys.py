"""Files with shared keys, and the settings that name them."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natf_bsd.config import parse, settings_of
from natf_bsd.errors import ConfigError, NatfError
from natf_bsd.keys import Key, load_key

PATH = Path("natf.toml")
IDENT = "00112233445566ff"
SECRET = "ab" * 32
FORMAT = "expected 16 hex digits of key id, a colon, 32 to 128 hex digits of secret, and nothing else"


def key_file(folder, text=f"{IDENT}:{SECRET}\n", mode=0o600, name="key"):
    file = folder / name
    file.write_text(text)
    file.chmod(mode)
    return file


@pytest.mark.parametrize("digits", [32, 64, 128])
def test_a_key_is_read(tmp_path, digits):
    secret = "0f" * (digits // 2)
    assert load_key(key_file(tmp_path, f"{IDENT}:{secret}\n")) == Key(bytes.fromhex(IDENT), bytes.fromhex(secret))


def test_the_owner_alone_may_read_it_even_if_that_is_all_he_may(tmp_path):
    assert load_key(key_file(tmp_path, mode=0o400)).ident == bytes.fromhex(IDENT)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o644, 0o666])
def test_a_key_that_others_can_get_at_is_refused(tmp_path, mode):
    file = key_file(tmp_path, mode=mode)
    with pytest.raises(NatfError) as caught:
        load_key(file)
    assert str(caught.value) == f"{file}: mode {mode:04o} lets others at this key; expected 0600 (chmod 600 {file})"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        SECRET,
        f"{IDENT}{SECRET}",
        f"{IDENT}:",
        f"{IDENT}:{'ab' * 15}",
        f"{IDENT}:{'ab' * 65}",
        f"{IDENT}:{SECRET}a",
        f"{IDENT[1:]}:{SECRET}",
        f"{IDENT.upper()}:{SECRET}",
        f"{IDENT}:{SECRET}\n{IDENT}:{SECRET}\n",
        f"{IDENT}:{SECRET} # router\n",
        f"{IDENT}:{'zz' * 32}",
        f"{IDENT}:{'é' * 32}",
        "x" * 100000,
    ],
)
def test_what_is_not_a_key_is_refused(tmp_path, text):
    file = key_file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_key(file)
    assert str(caught.value) == f"{file}:1: {FORMAT}"


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_key_or_an_error_that_does_not_repeat_them(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "any.key"
    file.write_bytes(data)
    file.chmod(0o600)
    try:
        assert isinstance(load_key(file), Key)
    except ConfigError as error:
        assert str(error) == f"{file}:1: {FORMAT}"


def test_a_missing_key_is_named_with_the_line_that_names_it(tmp_path):
    with pytest.raises(ConfigError) as caught:
        parse(f'[router]\n\nkeys = ["{tmp_path}/none"]', PATH)
    assert str(caught.value) == (
        f"natf.toml:3: router.keys: {tmp_path}/none: No such file or directory; "
        "expected a key file (natf key makes one)"
    )


def test_an_open_key_is_named_with_the_line_that_names_it(tmp_path):
    file = key_file(tmp_path, mode=0o644)
    with pytest.raises(ConfigError, match=r"^natf.toml:3: en.keys: .*/key: mode 0644 lets others at this key"):
        parse(f'[en]\nhome_domains = ["a.b"]\n[en.keys]\n"a.b" = "{file}"', PATH)


def test_a_broken_key_is_named_by_its_own_file(tmp_path):
    file = key_file(tmp_path, "nonsense")
    with pytest.raises(ConfigError) as caught:
        parse(f'[router]\nkeys = ["{file}"]', PATH)
    assert (caught.value.path, caught.value.line) == (file, 1)


def test_keys_are_found_by_home_domain(tmp_path):
    text = f'[en]\nhome_domains = ["a.b", "c.d"]\nkeys = {{ "A.B." = "{key_file(tmp_path)}" }}'
    assert parse(text, PATH).need_en().keys == {"a.b": Key(bytes.fromhex(IDENT), bytes.fromhex(SECRET))}


def test_under_any_home_domain_a_key_still_belongs_to_one(tmp_path):
    file = key_file(tmp_path)
    assert set(parse(f'[en]\nhome_domains = ["*"]\nkeys = {{"a.b" = "{file}"}}', PATH).need_en().keys) == {"a.b"}
    with pytest.raises(
        ConfigError, match=r"^natf.toml:3: en.keys = .*\(a key belongs to one home domain, not to \*\)$"
    ):
        parse(f'[en]\nhome_domains = ["*"]\nkeys = {{"*" = "{file}"}}', PATH)


def test_a_key_of_a_domain_that_is_not_configured_is_a_mistake(tmp_path):
    text = f'[en]\nhome_domains = ["home.example.net"]\n[en.keys]\n\n"hone.example.net" = "{key_file(tmp_path)}"'
    with pytest.raises(ConfigError) as caught:
        parse(text, PATH)
    assert str(caught.value) == (
        "natf.toml:5: en.keys has a key for hone.example.net; expected one of en.home_domains, home.example.net"
    )


def test_two_router_keys_of_one_id_are_a_mistake(tmp_path):
    first, second = key_file(tmp_path), key_file(tmp_path, f"{IDENT}:{'cd' * 16}", name="other")
    with pytest.raises(ConfigError, match=r"^natf.toml:2: router.keys = .*\(two keys have the same id\)$"):
        parse(f'[router]\nkeys = ["{first}", "{second}"]', PATH)


def test_a_required_key_that_is_there_is_taken(tmp_path):
    config = parse(f'[router]\nrequire_key = true\nkeys = ["{key_file(tmp_path)}"]', PATH).need_router()
    assert config.require_key
    assert config.keys[0].secret == bytes.fromhex(SECRET)


def test_a_secret_is_never_shown(tmp_path):
    file = key_file(tmp_path)
    config = parse(f'[en]\nhome_domains = ["a.b"]\nkeys = {{"a.b" = "{file}"}}\n[router]\nkeys = ["{file}"]', PATH)
    text = f"{config!r} {settings_of(config.need_en())} {settings_of(config.need_router())}"
    assert SECRET not in text
    assert repr(bytes.fromhex(SECRET)) not in text
    assert settings_of(config.need_en())["keys"] == settings_of(config.need_router())["keys"] == [IDENT]


def test_a_key_others_made_a_link_to_is_judged_by_what_it_is(tmp_path):
    link = tmp_path / "link"
    os.symlink(key_file(tmp_path, mode=0o644), link)
    with pytest.raises(NatfError, match="mode 0644"):
        load_key(link)
