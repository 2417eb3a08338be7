"""A rewards.yaml: the shipped ones are valid, folders are found, a mistake is one line with a remedy."""

import shutil
import sys
from pathlib import Path

import pytest

from reward_services import ConfigInvalid
from reward_services.config_file import load_config
from reward_services.options import (
    AestheticOptions,
    ClipOptions,
    CompositionalOptions,
    CustomOptions,
    MllmOptions,
)

SHIPPED = Path(__file__).parents[2] / "deploy" / "rewards.yaml"
GOOD = """
rewards:
  mine:
    scorer: clip
    options: {model: models/clip}
    batch: {max_images: 16}
  jpeg: {scorer: jpeg}
http: {port: 8100}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "rewards.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def model_of(path: Path, name: str) -> str:
    options = load_config(path).rewards[name].options
    assert isinstance(options, ClipOptions)
    return options.model


def test_the_shipped_rewards() -> None:
    config = load_config(SHIPPED)
    assert set(config.rewards) == {"preference", "clip", "jpeg", "verifier"}
    assert config.http is not None
    assert config.http.host == "127.0.0.1"
    shares = sum(reward.num_cpus * reward.num_replicas for reward in config.rewards.values())
    assert shares + config.http.num_cpus <= 0.5, "two trainer ranks need the rest of two cores"


def test_a_model_folder_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "clip").mkdir(parents=True)
    path = written(tmp_path, GOOD)
    monkeypatch.chdir("/")
    assert model_of(path, "mine") == str(tmp_path / "models" / "clip")


def test_every_folder_option_is_relative_to_the_file(tmp_path: Path) -> None:
    text = "rewards: {a: {scorer: aesthetic, options: {head: ./weights, revision: v1}}}"
    options = load_config(written(tmp_path, text)).rewards["a"].options
    assert isinstance(options, AestheticOptions)
    assert options.head == str(tmp_path / "weights")
    assert options.model == "openai/clip-vit-large-patch14"


def test_each_folder_of_several_is_relative_to_the_file(tmp_path: Path) -> None:
    text = "rewards: {c: {scorer: compositional, options: {models: {near: ./near, far: some/far}}}}"
    options = load_config(written(tmp_path, text)).rewards["c"].options
    assert isinstance(options, CompositionalOptions)
    assert options.models == {"near": str(tmp_path / "near"), "far": "some/far"}


@pytest.mark.parametrize("path", ["mine.py", "rewards/mine.py", "./mine.py", "package"])
def test_a_file_of_code_is_relative_to_the_file(tmp_path: Path, path: str) -> None:
    (tmp_path / "package").mkdir()
    text = f"rewards: {{c: {{scorer: custom, options: {{path: {path}, arguments: {{weights: a/b}}}}}}}}"
    options = load_config(written(tmp_path, text)).rewards["c"].options
    assert isinstance(options, CustomOptions)
    assert options.path == str((tmp_path / path).resolve())
    assert options.arguments == {"weights": "a/b"}, "the code's own business"


def test_a_name_without_a_folder_is_a_hub_model(tmp_path: Path) -> None:
    assert model_of(written(tmp_path, GOOD), "mine") == "models/clip"


@pytest.mark.parametrize("named", ["./clip", "../clip", "a/b/clip"])
def test_what_can_only_be_a_folder_is_one(tmp_path: Path, named: str) -> None:
    path = written(tmp_path, GOOD.replace("models/clip", named))
    assert model_of(path, "mine") == str((tmp_path / named).resolve())


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("max_images", "max_image", "unknown key 'rewards.mine.batch.max_image'; did you mean 'max_images'?"),
        ("model:", "modle:", "unknown key 'rewards.mine.options.modle'; did you mean 'model'?"),
        ("port", "prot", "unknown key 'http.prot'; did you mean 'port'?"),
        ("scorer: clip", "scorer: clop", "rewards.mine: no scorer 'clop'; there are 'aesthetic', 'clip', "),
        ("scorer: clip", "num_cpus: 1", "rewards.mine names no scorer; add `scorer: NAME`"),
        ("{port: 8100}", "{host: 0.0.0.0}", "host 0.0.0.0 is open to others: set keys to a file"),
        ("16", "0", "rewards.mine.batch.max_images: Input should be greater than 0"),
        ("16", "300", "max_ongoing_requests must be at least batch.max_images"),
        ("  mine:", "  my reward:", "pattern"),
        ("rewards:", "awards:", "unknown key 'awards'; did you mean 'rewards'?"),
        ("{port: 8100}", "[", "is not YAML"),
        (GOOD, "", "names no reward; write `rewards: {"),
        (GOOD, "- clip", "names no reward; write `rewards: {"),
        (GOOD, "rewards: {}", "names no reward; write `rewards: {"),
    ],
)
def test_mistakes_are_one_line_with_a_remedy(tmp_path: Path, right: str, wrong: str, says: str) -> None:
    path = written(tmp_path, GOOD.replace(right, wrong))
    with pytest.raises(ConfigInvalid) as caught:
        load_config(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_shipped_judge(tmp_path: Path) -> None:
    """Its interpreter is found from the file's folder, and stays a link: that makes it an environment's."""
    deploy, python = tmp_path / "deploy", tmp_path / ".venv-vllm" / "bin" / "python"
    (deploy / "shapes" / "judge").mkdir(parents=True)
    path = deploy / "rewards-mllm.yaml"
    shutil.copy(SHIPPED.parent / path.name, path)
    with pytest.raises(ConfigInvalid, match=f"{python} does not exist; correct it, or make its environment"):
        load_config(path)
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    judge = load_config(path).rewards["judge"]
    assert isinstance(judge.options, MllmOptions)
    assert judge.options.rubric == str(deploy / "shapes" / "judge" / "rubric.yaml")
    assert (judge.runtime_env or {})["py_executable"] == str(python)
    assert judge.health_check_period_s == 1.0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("num_gpus: 1, options: {model: a/b, tensor_parallel_size: 2}", "num_gpus must be at least"),
        (
            "options: {model: a/b, engine: {trust_remote_code: true}}",
            "engine.trust_remote_code.*Input should be",
        ),
        (
            "options: {model: a/b, gpu_memory_utilization: 1.5}",
            "gpu_memory_utilization: Input should be less",
        ),
    ],
)
def test_what_no_judge_may_be_told(tmp_path: Path, settings: str, says: str) -> None:
    with pytest.raises(ConfigInvalid, match=says) as caught:
        load_config(written(tmp_path, f"rewards: {{judge: {{scorer: mllm, {settings}}}}}"))
    assert "\n" not in str(caught.value)


def test_a_judge_never_gets_a_key(tmp_path: Path) -> None:
    judge = "rewards: {gpt: {scorer: openai_judge, options: {model: gpt-4o, %s}}}"
    load_config(written(tmp_path, judge % "api_key_env: OPENAI_API_KEY"))
    with pytest.raises(ConfigInvalid, match=r"unknown key 'rewards.gpt.options.api_key'.*'api_key_env'"):
        load_config(written(tmp_path, judge % "api_key: sk-secret"))


def test_a_limit_misspelt_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="did you mean 'max_items'"):
        load_config(written(tmp_path, GOOD + "limits: {max_item: 3}\n"))


def test_a_missing_or_binary_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"cannot read .*No such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigInvalid, match="is not YAML"):
        load_config(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("keys", "found"), [("team.yaml", "{}/team.yaml"), ("/etc/keys", "/etc/keys"), ("env:KEYS", "env:KEYS")]
)
def test_a_host_open_to_others_has_keys(tmp_path: Path, keys: str, found: str) -> None:
    text = GOOD.replace("{port: 8100}", f"{{host: 0.0.0.0, keys: '{keys}'}}")
    http = load_config(written(tmp_path, text)).http
    assert http is not None
    assert http.keys == found.format(tmp_path)
