"""How many images a caller may have scored: a token bucket per key that holds a minute's worth."""

from __future__ import annotations

import time
from collections.abc import Callable

from reward_services.errors import QuotaExceeded, TooLarge


class Quotas:
    """The buckets of all callers. `share` of the rate is given out here, the rest by other processes."""

    def __init__(self, *, share: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._clock = clock
        self._levels: dict[str, tuple[float, float]] = {}

    def charge(self, name: str, images_per_minute: int, images: int) -> None:
        """Take `images` from the bucket of `name`, which fills with `images_per_minute`; all or nothing.

        Raises:
            QuotaExceeded: there are not as many; it says when there will be.
            TooLarge: there will never be.
        """
        if images > images_per_minute:
            raise TooLarge(f"{images} images; {name} may score {images_per_minute} a minute: send fewer")
        now = self._clock()
        per_second = images_per_minute * self._share / 60
        level, at = self._levels.get(name, (float(images_per_minute), now))
        level = min(float(images_per_minute), level + (now - at) * per_second)
        if level < images:
            raise QuotaExceeded(
                f"{name} may score {images_per_minute} images a minute",
                retry_after_s=(images - level) / per_second,
            )
        self._levels[name] = (level - images, now)

    def give_back(self, name: str, images: int) -> None:
        """Put back what was taken from the bucket of `name` for images whose turn did not come."""
        if name in self._levels:
            level, at = self._levels[name]
            self._levels[name] = (level + images, at)
