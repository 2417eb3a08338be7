"""Token buckets by hand: 60 a minute is one a second, and a minute's worth at most."""

import pytest

from reward_services import QuotaExceeded, TooLarge
from reward_services.http.quota import Quotas


class Clock:
    """Seconds that pass when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_empties_and_fills() -> None:
    clock = Clock()
    quotas = Quotas(clock=clock)
    quotas.charge("alice", 60, 50)
    with pytest.raises(QuotaExceeded) as caught:
        quotas.charge("alice", 60, 15)
    assert caught.value.retry_after_s == pytest.approx(5.0)
    quotas.charge("alice", 60, 10)
    clock.now = 14.9
    with pytest.raises(QuotaExceeded):
        quotas.charge("alice", 60, 15)
    clock.now = 15.0
    quotas.charge("alice", 60, 15)


def test_it_holds_a_minute_at_most() -> None:
    clock = Clock()
    quotas = Quotas(clock=clock)
    quotas.charge("alice", 60, 60)
    clock.now = 3600.0
    quotas.charge("alice", 60, 60)
    with pytest.raises(QuotaExceeded):
        quotas.charge("alice", 60, 1)


def test_each_caller_has_his_own() -> None:
    quotas = Quotas(clock=Clock())
    quotas.charge("alice", 10, 10)
    quotas.charge("bob", 10, 10)
    with pytest.raises(QuotaExceeded):
        quotas.charge("alice", 10, 1)


def test_what_no_waiting_helps_is_said_so() -> None:
    with pytest.raises(TooLarge, match="send fewer"):
        Quotas(clock=Clock()).charge("alice", 10, 11)


def test_the_rate_is_shared_among_processes() -> None:
    clock = Clock()
    quotas = Quotas(share=0.5, clock=clock)
    quotas.charge("alice", 60, 60)
    with pytest.raises(QuotaExceeded) as caught:
        quotas.charge("alice", 60, 10)
    assert caught.value.retry_after_s == pytest.approx(20.0)
