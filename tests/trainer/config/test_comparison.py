"""Comparisons are read like runs: each run's settings are checked, the shipped one among them."""

from pathlib import Path

import pytest

from tests.contestants import write_contest
from trainer.config import ConfigError
from trainer.config.comparison import load_comparison

ROOT = Path(__file__).parents[3]


def test_a_run_has_what_is_shared_and_what_makes_it(pipelines: dict[str, Path], tmp_path: Path) -> None:
    comparison = load_comparison(write_contest(tmp_path, pipelines["epsilon"]), ["parallel=2"])
    config = comparison.run_config("grpo", 1)
    assert (config.method, config.seed, config.optimizer.lr) == ("grpo", 1, 1e-4)
    assert config.evaluation.along == 2
    assert config.run_folder == tmp_path / "compare" / "grpo-1"
    assert comparison.parallel == 2


def test_a_method_that_cannot_run_is_found_when_the_file_is_read(
    pipelines: dict[str, Path], tmp_path: Path
) -> None:
    path = write_contest(tmp_path, pipelines["epsilon"], methods={"odd": {"optimizer.rate": 1}})
    with pytest.raises(ConfigError, match=r'unknown key "optimizer\.rate"'):
        load_comparison(path, [])
    with pytest.raises(ConfigError, match="at least 1 item"):
        load_comparison(path, ["seeds=[]"])


def test_rewards_from_two_files_are_refused(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """The first's alone would be served; rewards of the same names would score the others."""
    shared = {"rewards.url": None, "rewards.services": "shared.yaml"}
    methods = {"one": shared, "two": {**shared, "seed": 0}, "own": {**shared, "rewards.services": "own.yaml"}}
    path = write_contest(tmp_path, pipelines["epsilon"], methods=methods)
    with pytest.raises(
        ConfigError, match=r"from own\.yaml and shared\.yaml; .* name all rewards in one file"
    ):
        load_comparison(path, [])
    load_comparison(path, ["methods.own=null"])


def test_null_leaves_one_out(pipelines: dict[str, Path], tmp_path: Path) -> None:
    path = write_contest(tmp_path, pipelines["epsilon"])
    everyone = load_comparison(path, [])
    fewer = load_comparison(
        path, ["methods.grpo=null", *(f"searches.{name}=null" for name in everyone.searches)]
    )
    assert set(everyone.methods) - set(fewer.methods) == {"grpo"}
    assert fewer.searches == {}


@pytest.mark.parametrize("file", ["compare.yaml", "learning-rates.yaml", "ablations.yaml", "longer.yaml"])
def test_shipped_comparisons_have_no_mistakes(monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    monkeypatch.chdir(ROOT)
    comparison = load_comparison(ROOT / "deploy" / file, [])
    for name in comparison.methods:
        comparison.run_config(name, 0)


def test_the_shipped_comparison_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    comparison = load_comparison(Path("deploy/compare.yaml"), [])
    configs = {name: comparison.run_config(name, 0) for name in comparison.methods}
    assert {config.method for config in configs.values()} == {
        "sft_sharpening",
        "rlhf_sharpening",
        "standard",
        "diffusion_dpo",
        "d3po",
        "ddpo",
        "grpo",
        "diffusion_nft",
    }
    assert configs["control"].selection.by == "random"
    assert len({config.budget.training_s for config in configs.values()}) == 1


def test_the_shipped_comparison_by_scored_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    changes = ["share.budget={images_scored: 2048}", "methods.standard=null"]
    comparison = load_comparison(Path("deploy/compare.yaml"), changes)
    for name in comparison.methods:
        budget = comparison.run_config(name, 0).budget
        assert (budget.training_s, budget.images_scored) == (None, 2048)


@pytest.mark.parametrize("of", ["share", "methods.rlhf_sharpening"])
def test_one_setting_on_the_command_line_leaves_its_neighbours(
    monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    """It took the place of the whole section: warm-up, betas and steps fell back to their defaults."""
    monkeypatch.chdir(ROOT)
    path = Path("deploy/compare.yaml")
    usual = load_comparison(path, []).run_config("rlhf_sharpening", 0)
    changed = load_comparison(path, [f"{of}.optimizer.lr=0.5"]).run_config("rlhf_sharpening", 0)
    assert changed.optimizer == usual.optimizer.model_copy(update={"lr": 0.5})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seeds=[0, 1, 0]", "seeds 0, 1, 0 repeat one: name each once"),
        ("methods={grpo: {}, a/../grpo: {}}", "a/../grpo: a name is that of a folder: leave out each /"),
        ("searches.grpo={method: best_of_n, budget: 18}", "grpo names a method and a search: call one other"),
    ],
)
def test_two_of_a_comparison_never_share_a_folder(
    pipelines: dict[str, Path], tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_comparison(write_contest(tmp_path, pipelines["epsilon"]), [override])
