"""Serve's messages come down to one line."""

from reward_services.diagnosis import cause_of, failure_among, first_line, more_telling

TRACEBACK = """A replica failed to start with exception. Retrying 2 more time(s). Error:
ray::ServeReplica:rewards:clip.initialize_and_get_metadata() (pid=1, ip=127.0.0.1)
RuntimeError: Traceback (most recent call last):
  File "deployments.py", line 59, in __init__
    raise ConfigInvalid(
reward_services.errors.ConfigInvalid: model folder /x does not exist; make it first
"""


def test_a_refused_configuration_is_its_own_message() -> None:
    assert cause_of(TRACEBACK) == "model folder /x does not exist; make it first"


def test_another_exception_is_named() -> None:
    message = TRACEBACK.replace("reward_services.errors.ConfigInvalid: model", "MemoryError: model")
    assert cause_of(message).startswith("MemoryError: model folder")
    assert "\n" not in cause_of(message)


def test_prose_is_kept() -> None:
    prose = (
        "Deployment 'clip' has 1 replicas that have taken more than 30s to be scheduled.\nResources required"
    )
    assert cause_of(prose) == f"{prose.splitlines()[0]}; allow more time or free resources"
    assert cause_of("").startswith("it is still starting")


def test_a_failure_is_known_as_soon_as_there_is_no_hope() -> None:
    fine, starting = ("HEALTHY", ""), ("UPDATING", "")
    assert failure_among({"clip": starting, "jpeg": fine}, is_late=False) is None
    assert failure_among({"clip": fine, "jpeg": fine}, is_late=False) is None
    refused = failure_among({"jpeg": fine, "clip": ("UPDATING", TRACEBACK)}, is_late=False)
    assert refused == "reward clip never became ready: model folder /x does not exist; make it first"
    assert failure_among({"clip": ("DEPLOY_FAILED", "no")}, is_late=False) is not None
    late = failure_among({"jpeg": fine, "clip": starting}, is_late=True)
    assert late is not None
    assert late.startswith("reward clip never became ready: it is still starting")
    assert failure_among({}, is_late=True) == "the rewards never became ready; see the logs of Ray Serve"


def test_a_cause_is_kept_while_serve_says_that_a_start_takes_long() -> None:
    slow = "Deployment 'clip' has 1 replicas that have taken more than 30s to initialize."
    other = TRACEBACK.replace("/x", "/y")
    assert more_telling(slow, TRACEBACK) == TRACEBACK
    assert more_telling(other, TRACEBACK) == other
    assert more_telling(slow, "") == slow


def test_first_line() -> None:
    assert first_line("\n\n one \n two") == "one "
    assert first_line("") == ""
    assert len(first_line("x" * 999)) == 200


def test_the_endpoint_is_no_reward() -> None:
    failure = failure_among({"_ingress": ("UPDATING", TRACEBACK)}, is_late=False)
    assert failure == "the HTTP endpoint never became ready: model folder /x does not exist; make it first"
