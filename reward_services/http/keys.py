"""Who may call: named keys, of which only digests are kept, read again when their file changes.

A file of keys is a YAML list, one key a line as `rewards key new NAME` prints it; all but the first two are
optional:

    - {name: alice, sha256: 9f86d0..., lane: train, images_per_minute: 60000, rewards: [clip]}

To rotate a key add a line with a new name, hand out the new key, then remove the old line. A key has 256
random bits, so its plain SHA-256 is as hard to reverse as any slow digest would be.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import secrets
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError

from reward_services.errors import ConfigInvalid, NotPermitted
from reward_services.schema import Lane

NO_KEYS, ENVIRONMENT = "none", "env:"

_LOOK_AGAIN_S = 1.0
_log = logging.getLogger(__name__)


class Caller(BaseModel):
    """Whoever calls, and what he may: `rewards` None is every one, `images_per_minute` None any number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
    lane: Lane = "others"
    images_per_minute: PositiveInt | None = None
    rewards: tuple[str, ...] | None = None

    def check_may_use(self, rewards: Collection[str]) -> None:
        """Raises `NotPermitted` when one of these rewards is not for this caller."""
        barred = [name for name in rewards if self.rewards is not None and name not in self.rewards]
        if barred:
            raise NotPermitted(f"the key {self.name!r} may not use {', '.join(barred)}")


class Key(Caller):
    """A caller and the SHA-256 digest of his key."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


ANYONE = Caller(name="anyone")
"""The caller of a server without keys."""


class Keys:
    """Callers by their keys."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = tuple(keys)

    def find(self, presented: bytes) -> Caller | None:
        """The caller who presents this key; every digest is compared, in constant time."""
        digest = hashlib.sha256(presented).hexdigest()
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]
        return found[0] if found else None


class KeyFile(Keys):
    """Keys of a file, followed within a second when it changes.

    A file that cannot be read any more leaves the keys as they are, with an error in the log: a half-written
    file locks nobody out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._now_on_disk()
        self._looked_at = time.monotonic()
        super().__init__(self._read())

    def find(self, presented: bytes) -> Caller | None:
        """As `Keys.find`."""
        if time.monotonic() - self._looked_at >= _LOOK_AGAIN_S:
            self._looked_at = time.monotonic()
            self._follow()
        return super().find(presented)

    def _follow(self) -> None:
        stamp = self._now_on_disk()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = self._read()
        except ConfigInvalid as error:
            _log.error("%s; the keys stay as they were", error)
        else:
            _log.warning("read %d keys from %s", len(self._keys), self._path)

    def _now_on_disk(self) -> tuple[int, int, int] | None:
        """What changes with the file; through links, as Kubernetes swaps mounted secrets by a link."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> tuple[Key, ...]:
        try:
            text = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigInvalid(f"cannot read keys from {self._path}: {error}") from error
        return parse_keys(text, where=str(self._path))


def parse_keys(text: str, *, where: str) -> tuple[Key, ...]:
    """The keys of a YAML list; raises `ConfigInvalid`, which repeats nothing of what is written there."""
    try:
        keys = TypeAdapter(tuple[Key, ...]).validate_python(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigInvalid(f"{where} is not YAML; write a line per key as `rewards key new` does") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the keys"
        raise ConfigInvalid(f"{where}: {place}: {first['msg']}") from error
    if not keys:
        raise ConfigInvalid(f"{where} has no keys; make one with `rewards key new NAME`")
    for what in ("name", "sha256"):
        if len({getattr(key, what) for key in keys}) < len(keys):
            raise ConfigInvalid(f"{where}: two keys have the same {what}; give each its own")
    return keys


def open_keys(source: str) -> Keys | None:
    """The keys of `http.keys`: a file's path, `env:VARIABLE` with such a file's text in it, or `none`.

    Raises:
        ConfigInvalid: they cannot be read; one line that says where and what to do.
    """
    if source == NO_KEYS:
        return None
    if not source.startswith(ENVIRONMENT):
        return KeyFile(Path(source))
    variable = source.removeprefix(ENVIRONMENT)
    text = os.environ.get(variable)
    if text is None:
        raise ConfigInvalid(f"{variable} is not set; it is to hold the keys, one a line")
    return Keys(parse_keys(text, where=variable))


def new_key(name: str, lane: Lane = "others", images_per_minute: int | None = None) -> tuple[str, str]:
    """A fresh key, and the line of a file of keys that admits it; raises `ConfigInvalid` for a bad name."""
    key = f"rk_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    quota = {} if images_per_minute is None else {"images_per_minute": images_per_minute}
    made = {"name": name, "sha256": digest, "lane": lane, **quota}
    line = yaml.safe_dump([made], default_flow_style=None, sort_keys=False, width=1000).strip()
    parse_keys(line, where=f"the name {name!r}")
    return key, line


def is_loopback(host: str) -> bool:
    """Whether an address, or the name localhost, is this machine only."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
