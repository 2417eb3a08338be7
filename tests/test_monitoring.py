"""RAY. The README's table, the rules and the dashboards, held against a live scrape of served rewards."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import ray
import yaml
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from deploy.grafana.make import written
from reward_services import AsyncRewardClient, ImageInvalid, Score, ScoredItem
from reward_services import observed as of_rewards
from reward_services.config import ServicesConfig
from reward_services.deployments import connect, deploy
from reward_services.http.lanes import Lanes
from reward_services.http.metrics import Metrics
from reward_services.instruments import Instruments
from reward_services.shapes.captions import parse
from reward_services.shapes.render import render
from tests.ports import free_port
from trainer import observed as of_runs
from trainer.cluster import CoordinatorScoring
from trainer.observed import ObservedCoordinator
from trainer.pace import Pace

ROOT = Path(__file__).parent.parent
PROMETHEUS, GRAFANA = ROOT / "deploy" / "prometheus", ROOT / "deploy" / "grafana"
MEASURED_BY_RAY = (*of_rewards.METRICS, *of_runs.METRICS)
NOT_HERE = {"ray_node_gpus_utilization", "ray_node_gram_used", "up"}
"""What needs a GPU, and what Prometheus itself adds."""
CAPTION, PICTURES = "a red circle", 11

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None and os.environ.get("REQUIRE_PROMTOOL") != "1",
    reason="promtool is not installed: apt-get install prometheus",
)
# Ray leaves sockets and files of its processes to the garbage collector.
pytestmark = pytest.mark.filterwarnings("default::ResourceWarning", "default::FutureWarning")


class Row(NamedTuple):
    """A metric as the README lists it."""

    name: str
    kind: str
    labels: str
    meaning: str


class Scrape(NamedTuple):
    """What the two places answered."""

    ray: str
    endpoint: str

    @property
    def names(self) -> set[str]:
        """Every name that a query can have."""
        return {name for text in self for name in re.findall(r"^[a-z]\w*", text, flags=re.MULTILINE)}

    def total(self, name: str, **labels: str) -> float:
        """The sum over the samples that have these labels."""
        lines = [
            line for text in self for line in text.splitlines() if line.startswith((name + "{", name + " "))
        ]
        samples = [s for f in text_string_to_metric_families("\n".join(lines) + "\n") for s in f.samples]
        return sum(s.value for s in samples if labels.items() <= s.labels.items())


def rows_of_the_code() -> list[Row]:
    metrics = Metrics(Lanes())
    metrics.answered("/v1/scores", 200, 0.1)
    metrics.scored([ScoredItem(id="a", index=0, scores={"clip": Score.failed(ImageInvalid("torn"))})])
    rows = [
        Row(f"ray_{one.name}" + "_total" * (one.kind == "counter"), one.kind, labels(one.labels), one.meaning)
        for one in MEASURED_BY_RAY
    ]
    families = text_string_to_metric_families(metrics.text().decode())
    for family in (one for one in families if not one.name.endswith("_created")):
        names = {label for sample in family.samples for label in sample.labels} - {"le"}
        name = family.name + "_total" * (family.type == "counter")
        rows.append(Row(name, family.type, labels(names), family.documentation))
    return rows


def labels(names: Any) -> str:
    return ", ".join(sorted(names))


def rows_of_the_readme() -> list[Row]:
    lines = (PROMETHEUS / "README.md").read_text(encoding="utf-8").splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")
    ]
    return [Row(name.strip("`"), *rest) for name, *rest in cells]


def names_in(query: str) -> set[str]:
    """The metrics that a query reads: words that are neither functions, labels, numbers nor operators."""
    for clutter in (r'"[^"]*"', r"\{[^}]*\}", r"\[[^\]]*\]", r"\b(?:by|without|on|ignoring)\s*\([^)]*\)"):
        query = re.sub(clutter, " ", query)
    words = set(re.findall(r"(?<![\w.:])[a-zA-Z_:][\w:]*(?!\w|\s*\()", query))
    return words - {"and", "or", "unless", "offset", "bool"}


def rules() -> list[dict[str, Any]]:
    content = yaml.safe_load((PROMETHEUS / "rules.yaml").read_text(encoding="utf-8"))
    return [rule for group in content["groups"] for rule in group["rules"]]


def dashboards() -> dict[str, Any]:
    return {
        path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(GRAFANA.glob("*.json"))
    }


def queries() -> dict[str, str]:
    """Every query by where it stands."""
    found = {str(rule.get("record") or rule.get("alert")): rule["expr"] for rule in rules()}
    for name, dashboard in dashboards().items():
        for panel in dashboard["panels"]:
            targets = {target["refId"]: target["expr"] for target in panel["targets"]}
            found |= {f"{name}: {panel['title']}, {letter}": query for letter, query in targets.items()}
    return found


def missing_from(scrape: Scrape) -> dict[str, set[str]]:
    recorded = {str(rule["record"]) for rule in rules() if "record" in rule}
    known = scrape.names | recorded | NOT_HERE
    found = {place: names_in(query) - known for place, query in queries().items()}
    found["README.md"] = {family_name(row) for row in rows_of_the_code()} - known
    return {place: names for place, names in found.items() if names}


def family_name(row: Row) -> str:
    return row.name + "_count" * (row.kind == "histogram")


@pytest.fixture(scope="module")
def scrape() -> Iterator[Scrape]:
    """Two rewards after some traffic, with failures: once everything is there, or after a minute."""
    port = free_port()
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200_000_000,
        log_to_driver=False,
        _system_config={"metrics_report_interval_ms": 1000},
    )
    light = {"num_cpus": 0.1, "health_check_period_s": 1.0, "observe": {"window": 10}}
    rewards = {
        "verifier": {"scorer": "verifier", **light},
        # Goes at once when it is full, and else much later than anybody here waits.
        "jpeg": {"scorer": "jpeg", **light, "batch": {"max_images": PICTURES, "wait_ms": 60_000}},
    }
    try:
        deploy(ServicesConfig.model_validate({"rewards": rewards, "http": {"port": port}}))
        asyncio.run(over_http(port))
        through_the_coordinator()
        yield settled(port)
        serve.shutdown()
    finally:
        ray.shutdown()


async def over_http(port: int) -> None:
    rng = np.random.default_rng(0)
    pictures: list[Any] = [render(parse(CAPTION), rng) for _ in range(PICTURES)]
    torn = b"\x89PNG\r\n\x1a\n"
    async with AsyncRewardClient(f"http://127.0.0.1:{port}") as client:
        prompts = [CAPTION] * (PICTURES + 1)
        scores = await client.score([*pictures, torn], prompts, rewards=["verifier", "jpeg"], deadline_s=60)
        assert [score.ok for score in scores["verifier"]] == [True] * PICTURES + [False]
        (failed,) = (await client.score(pictures[:1], ["no caption"], rewards=["verifier"]))["verifier"]
        assert not failed.ok


def through_the_coordinator() -> None:
    """Every attempt at `jpeg` ends before its batch goes: it is retried and given up."""
    actor: Any = ray.remote(ObservedCoordinator)
    pace = Pace(attempt_s=1.0, deadline_s=2.0)
    coordinator = actor.options(num_cpus=0, max_concurrency=100).remote(
        connect(), names=["verifier", "jpeg"], record=Instruments(), pace=pace
    )
    scoring = CoordinatorScoring(coordinator)
    picture = render(parse(CAPTION), np.random.default_rng(1))[None]
    for _ in range(2):
        scores = scoring.submit(picture, [CAPTION], ["verifier", "jpeg"])()
        assert [scores[name][0].ok for name in ("verifier", "jpeg")] == [True, False]


def settled(port: int) -> Scrape:
    node = ray.nodes()[0]
    of_ray = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    ends = time.monotonic() + 60
    while True:
        scrape = Scrape(httpx.get(of_ray).text, httpx.get(f"http://127.0.0.1:{port}/metrics").text)
        # What came last is of the coordinator, which notes its counts every second.
        whole = not missing_from(scrape) and scrape.total("ray_coord_failures_total") == 2
        if whole or time.monotonic() > ends:
            return scrape
        time.sleep(0.5)


def test_every_name_is_in_the_scrape(scrape: Scrape) -> None:
    assert missing_from(scrape) == {}


def test_the_scrape_says_what_happened(scrape: Scrape) -> None:
    seen = {
        outcome: scrape.total("ray_reward_items_total", reward="verifier", outcome=outcome)
        for outcome in ("ok", "prompt-invalid")
    }
    # A retry after the answer was lost may score a picture of the coordinator's again.
    assert seen["ok"] >= PICTURES + 1
    assert seen["prompt-invalid"] == 1
    assert scrape.total("reward_http_items_total", reward="verifier", outcome="image-invalid") == 1
    assert scrape.total("ray_reward_scores", reward="verifier", up_to="+Inf") >= PICTURES
    assert scrape.total("ray_reward_model_info", reward="jpeg", dtype="none") == 1
    assert scrape.total("ray_reward_golden_delta", reward="jpeg") == 0
    assert scrape.total("ray_coord_items_total") == 2
    assert scrape.total("ray_coord_failures_total") == 2
    assert scrape.total("ray_trainer_reward_stall_seconds_total") > 0.5


def test_the_readme_lists_what_the_code_measures() -> None:
    listed, measured = rows_of_the_readme(), rows_of_the_code()
    assert sorted(listed) == sorted(measured)


def test_dashboards_are_what_their_tables_say() -> None:
    files = {path.name: path.read_text(encoding="utf-8") for path in GRAFANA.glob("*.json")}
    assert files == written(), "run python -m deploy.grafana.make"


@pytest.mark.parametrize("name", sorted(written()))
def test_a_dashboard_can_be_imported_anywhere(name: str) -> None:
    dashboard = dashboards()[name]
    assert dashboard["uid"] == name.removesuffix(".json")
    assert not {"id", "version"} & dashboard.keys(), "Grafana gives them"
    assert dashboard["templating"]["list"][0]["type"] == "datasource"
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert len(set(titles)) == len(titles)
    for panel in dashboard["panels"]:
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


def test_names_are_found_in_queries() -> None:
    query = 'a:b{x="y"} / on (z) sum by (c) (rate(d_total{e=~"f|g"}[5m])) - h offset 15m or 0 * abs(i) > 1e3'
    assert names_in(query) == {"a:b", "d_total", "h", "i"}


@needs_promtool
@pytest.mark.parametrize(
    "command", ["check rules rules.yaml", "test rules rules_test.yaml", "check config prometheus.yml"]
)
def test_promtool_accepts(command: str, tmp_path: Path) -> None:
    for path in PROMETHEUS.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "rewards.key").touch()
    result = promtool(*command.split(), cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
def test_promtool_finds_no_fault_with_the_names(scrape: Scrape, tmp_path: Path) -> None:
    ours = re.compile(r"^(?:# (?:HELP|TYPE) )?(?:ray_(?:reward|coord|trainer)|reward_http)_")
    lines = [line for text in scrape for line in text.splitlines(keepends=True) if ours.match(line)]
    assert len(lines) > 100
    result = promtool("check", "metrics", cwd=tmp_path, stdin="".join(lines))
    # The labels that Ray adds are camelCase.
    assert {line for line in result.stderr.splitlines() if "camelCase" not in line} == set()
    assert result.returncode in (0, 3)


def promtool(*arguments: str, cwd: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *arguments], cwd=cwd, input=stdin, capture_output=True, text=True, check=False
    )
