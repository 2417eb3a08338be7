"""RAY. A metric becomes Ray's of its kind; that they come out of Ray is in tests/test_monitoring.py."""

import pytest
from ray import cloudpickle

from reward_services.instruments import Instruments
from reward_services.observed import Metric


@pytest.mark.parametrize("kind", ["counter", "gauge", "histogram"])
def test_each_kind_takes_values_with_its_labels(kind: str) -> None:
    metric = Metric(f"tests_{kind}", kind, "Of a test", ("reward",), (1.0, 2.0))  # type: ignore[arg-type]
    note = Instruments()
    note(metric, 1.5, reward="a")
    note(metric, 1, reward="b")
    with pytest.raises(ValueError, match="reward"):
        note(metric, 1.5)
    with pytest.raises(TypeError):
        note(metric, "1", reward="a")  # type: ignore[arg-type]


def test_it_can_be_sent_to_an_actor_after_use() -> None:
    note, metric = Instruments(), Metric("tests_sent", "counter", "Of a test")
    note(metric, 1, reward="a")
    cloudpickle.loads(cloudpickle.dumps(note))(metric, 1, reward="a")
