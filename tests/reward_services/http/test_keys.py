"""Keys: found by digest, followed when their file changes, never in what is written or said."""

import hashlib
import logging
import time
from pathlib import Path

import pytest

from reward_services import ConfigInvalid, NotPermitted
from reward_services.http.keys import Caller, KeyFile, Keys, is_loopback, new_key, open_keys, parse_keys


def line(name: str, key: str, more: str = "") -> str:
    return f"- {{name: {name}, sha256: {hashlib.sha256(key.encode()).hexdigest()}{more}}}\n"


def found(keys: Keys | None, key: str) -> str | None:
    assert keys is not None
    caller = keys.find(key.encode())
    return caller.name if caller else None


def test_a_fresh_key_opens_by_its_line() -> None:
    key, written = new_key("alice", "train", 600)
    assert len(key) > 40
    assert key not in written
    caller = Keys(parse_keys(written, where="here")).find(key.encode())
    assert caller is not None
    assert (caller.name, caller.lane, caller.images_per_minute) == ("alice", "train", 600)
    assert new_key("alice")[0] != key
    for name in ("1.5", "true"):
        key, written = new_key(name)
        assert found(Keys(parse_keys(written, where="here")), key) == name
    for name in ("Alice, root", "a: b}"):
        with pytest.raises(ConfigInvalid, match=f"the name '{name}': 0.name: String should match"):
            new_key(name)


def test_several_keys_and_no_other_opens() -> None:
    keys = Keys(parse_keys(line("alice", "a") + line("bob", "b", ", lane: eval"), where="here"))
    assert [found(keys, key) for key in ("a", "b", "c", "", "A")] == ["alice", "bob", None, None, None]
    digest = hashlib.sha256(b"a").hexdigest()
    assert found(keys, digest) is None, "what lies in the file is no key"


def test_a_key_may_be_for_some_rewards_only() -> None:
    caller = Caller(name="alice", rewards=("clip",))
    caller.check_may_use(["clip"])
    Caller(name="bob").check_may_use(["clip", "judge"])
    with pytest.raises(NotPermitted, match="'alice' may not use judge"):
        caller.check_may_use(["clip", "judge"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the keys: Input should be a valid"),
        ("[]", "has no keys"),
        ("alice: secret", "the keys: Input should be a valid"),
        ("- {name: alice, sha256: secret}", "0.sha256: String should match"),
        ("- {name: alice", "is not YAML"),
        (line("alice", "a", ", lane: first"), "0.lane: Input should be 'train', 'eval' or 'others'"),
        (line("alice", "a", ", images_per_minute: 0"), "0.images_per_minute"),
        (line("alice", "a", ", quota: 3"), "0.quota"),
        (line("alice", "a") + line("alice", "b"), "two keys have the same name"),
        (line("alice", "a") + line("bob", "a"), "two keys have the same sha256"),
    ],
)
def test_mistakes_are_one_line_without_what_was_written(text: str, says: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse_keys(text, where="keys.yaml")
    assert str(caught.value).startswith("keys.yaml")
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_keys_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_keys("none") is None
    path = tmp_path / "keys.yaml"
    path.write_text(line("alice", "a"), encoding="utf-8")
    assert found(open_keys(str(path)), "a") == "alice"
    monkeypatch.setenv("TEAM_KEYS", line("bob", "b"))
    assert found(open_keys("env:TEAM_KEYS"), "b") == "bob"
    with pytest.raises(ConfigInvalid, match="OTHER_KEYS is not set"):
        open_keys("env:OTHER_KEYS")
    with pytest.raises(ConfigInvalid, match="cannot read keys from"):
        open_keys(str(tmp_path / "none.yaml"))


def test_a_file_is_followed_and_a_broken_one_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rotation: both keys, then the new one alone; junk and a missing file change nothing but the log."""
    caplog.set_level(logging.INFO)
    path = tmp_path / "keys.yaml"
    path.write_text(line("alice", "old"), encoding="utf-8")
    keys = KeyFile(path)
    for text, opens in [
        (line("alice", "old") + line("alice-2", "new"), ["alice", "alice-2"]),
        (line("alice-2", "new"), [None, "alice-2"]),
        ("- half a li", [None, "alice-2"]),
        (None, [None, "alice-2"]),
        (line("alice", "old"), ["alice", None]),
    ]:
        if text is None:
            path.unlink()
        else:
            path.write_text(text, encoding="utf-8")
        time.sleep(1.1)
        assert [found(keys, key) for key in ("old", "new")] == opens
        found(keys, "old")
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "WARNING", "ERROR", "ERROR", "WARNING"], "once per change"


def test_a_link_that_is_swapped_is_followed(tmp_path: Path) -> None:
    """As Kubernetes replaces the files of a mounted secret."""
    for version, key in (("1", "a"), ("2", "b")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys.yaml").write_text(line("alice", key), encoding="utf-8")
    link = tmp_path / "current"
    link.symlink_to("1")
    keys = KeyFile(link / "keys.yaml")
    link.unlink()
    link.symlink_to("2")
    time.sleep(1.1)
    assert [found(keys, key) for key in ("a", "b")] == [None, "alice"]


@pytest.mark.parametrize(
    ("host", "is_it"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("rewards.local", False),
        ("", False),
    ],
)
def test_loopback(host: str, is_it: bool) -> None:
    assert is_loopback(host) is is_it
