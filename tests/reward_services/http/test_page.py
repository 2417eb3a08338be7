"""The page in a real browser: what is dropped, typed and clicked is scored; copied code gives the same."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from reward_services import Limits, RewardClient
from reward_services.config import Http
from reward_services.http.app import create_app
from reward_services.http.keys import new_key
from reward_services.http.page import FILES, page_file
from reward_services.scorers.jpeg import JpegScorer
from reward_services.scorers.verifier import VerifierScorer
from reward_services.shapes.captions import parse
from reward_services.shapes.render import render
from tests.browser import chromium, clean_tab, drop

CAPTION, OTHER = "a red circle left of a blue square", "a blue circle left of a red square"
EVIL = "<img src=x onerror=\"document.title='owned'\">'; $(touch owned) `touch owned` \\\"é\u2028;type=a"
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def rewards(rewards_here: Callable[..., Any]) -> Any:
    return rewards_here({"jpeg": JpegScorer(), "verifier": VerifierScorer()})


@pytest.fixture(scope="module")
def url(rewards: Any, served: Callable[..., Any]) -> Iterator[str]:
    with served(create_app(rewards, limits=Limits(max_items=5))) as address:
        yield address


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with clean_tab(browser) as tab:
        yield tab


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Two renders that differ, one of them called what should hurt a shell, and a file that is no picture."""
    rng = np.random.default_rng(3)
    paths = [
        tmp_path / "a red circle.png",
        tmp_path / 'it\'s $(HOME) "b\\c"; <b>é.png',
        tmp_path / "torn.png",
    ]
    for path, caption in zip(paths, (CAPTION, OTHER), strict=False):
        Image.fromarray(render(parse(caption), rng)).save(path)
    paths[2].write_bytes(b"torn")
    return paths


def choose(page: Page, url: str, paths: list[Path], prompt: str = CAPTION) -> None:
    page.goto(url)
    expect(page.get_by_role("checkbox")).to_have_count(2)
    page.get_by_label("Images", exact=True).set_input_files(paths)
    page.get_by_label("Prompt", exact=True).fill(prompt)


def score(page: Page) -> Locator:
    """Click, and the rows of the table that comes of it."""
    page.get_by_role("button", name="Score").click()
    expect(page.locator("#summary")).not_to_be_empty()
    return page.locator("#scores tbody tr")


def shown(row: Locator) -> list[float]:
    return [float(one.get_attribute("value") or "nan") for one in row.locator("data").all()]


def exact(rewards: Any, paths: list[Path], prompts: list[str]) -> list[list[float]]:
    """Per picture, what each scorer says of it in this process."""
    images = [np.asarray(Image.open(path)) for path in paths]
    columns = [scorer.score(images, prompts) for scorer in rewards.scorers.values()]
    return [[column[index].value for column in columns] for index in range(len(paths))]


def test_files_that_are_dropped_are_scored(page: Page, url: str, rewards: Any, pictures: list[Path]) -> None:
    page.goto(url)
    drop(page.locator("#drop"), pictures)
    page.get_by_label("Prompt", exact=True).fill(CAPTION)
    rows = score(page)
    expect(rows).to_have_count(3)
    assert [shown(row) for row in rows.all()] == [*exact(rewards, pictures[:2], [CAPTION] * 2), []]
    expect(rows.nth(0).locator("td").nth(1)).to_contain_text("best")
    expect(rows.nth(1).locator("td").nth(1)).not_to_contain_text("best")
    expect(rows.nth(0).locator("td").nth(1)).to_contain_text("relation\u00a01")
    expect(rows.nth(2)).to_contain_text("The media type is not supported: 'application/octet-stream'")
    expect(page.locator("#summary")).to_contain_text("4 scores, 2 failed")
    expect(page.locator("thead").first).to_contain_text("↑ higher is better0 to 1")


def test_bars_lie_in_the_range_of_the_reward(page: Page, url: str, pictures: list[Path]) -> None:
    """The verifier's range is 0 to 1, so 1 fills it and 0 is next to nothing."""
    choose(page, url, pictures[:2])
    bars = score(page).locator("td:nth-child(3) .bar")
    full, empty = (bar.bounding_box() for bar in (bars.nth(0), bars.nth(1).locator("i")))
    filled = bars.nth(0).locator("i").bounding_box()
    assert full
    assert filled
    assert empty
    assert filled["width"] == pytest.approx(full["width"], abs=1)
    assert empty["width"] <= 2


def test_each_image_may_have_a_prompt_of_its_own(
    page: Page, url: str, rewards: Any, pictures: list[Path]
) -> None:
    choose(page, url, pictures[:2])
    page.get_by_label(f"Prompt of {pictures[1].name}").fill(OTHER)
    rows = score(page)
    assert [shown(row) for row in rows.all()] == exact(rewards, pictures[:2], [CAPTION, OTHER])
    page.get_by_role("button", name=f"Remove {pictures[0].name}").click()
    page.get_by_label("verifier").uncheck()
    expect(score(page)).to_have_count(1)
    assert len(shown(rows.first)) == 1


def test_one_that_has_never_answered_is_told_of(page: Page, rewards: Any, served: Callable[..., Any]) -> None:
    with served(create_app(rewards, names=["jpeg", "gone"])) as url:
        page.goto(url)
        expect(page.get_by_label("gone")).to_be_disabled()
        expect(page.locator("#rewards li").nth(1)).to_contain_text(
            "There is no such reward: no reward 'gone'"
        )


def copied(page: Page, language: str) -> str:
    page.get_by_text(language, exact=True).click()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


def ran(command: list[str], folder: Path, **environment: str) -> str:
    result = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return result.stdout


def test_the_copied_code_gives_the_scores_of_the_table(
    page: Page, url: str, pictures: list[Path], tmp_path: Path
) -> None:
    """With a file name and a prompt made to break quotes; whether they are run is whether a file appears."""
    choose(page, url, pictures[:2])
    page.get_by_label(f"Prompt of {pictures[1].name}").fill(EVIL)
    values = [shown(row) for row in score(page).all()]
    assert [len(row) for row in values] == [2, 1]
    answer = json.loads(ran(["bash", "-c", copied(page, "curl")], tmp_path))
    assert [
        [one["value"] for one in item["scores"].values() if "value" in one] for item in answer["items"]
    ] == values
    assert repr(EVIL) in answer["items"][1]["scores"]["verifier"]["error"]["detail"]
    printed = ran([sys.executable, "-c", copied(page, "Python")], tmp_path, PYTHONPATH=str(ROOT))
    first, second, third, _ = printed.splitlines()
    assert [float(line.split()[-1]) for line in (first, second, third)] == [
        values[0][0],
        values[1][0],
        values[0][1],
    ]
    assert repr(EVIL) in printed
    assert not (tmp_path / "owned").exists()


def test_nothing_that_is_shown_is_run(page: Page, url: str, pictures: list[Path], tmp_path: Path) -> None:
    """Markup in a file's name, in its prompt and in the problem that repeats the prompt stays text."""
    evil = tmp_path / "<img src=x onerror=document.title='owned'>.png"
    shutil.copy(pictures[0], evil)
    choose(page, url, [evil], EVIL)
    row = score(page).first
    expect(row.locator("td").nth(1)).to_contain_text(f"'{EVIL[:20]}")
    expect(row.locator("th b")).to_have_text(evil.name)
    expect(row.locator("th small")).to_have_text(EVIL.replace("\u2028", " "))
    assert page.locator("img[src=x], td b, th b b").count() == 0
    assert page.title() == "Rewards"


def test_what_stands_in_the_way_is_said_where_it_can_be_put_right(
    page: Page, url: str, pictures: list[Path]
) -> None:
    page.goto(url)
    note = page.get_by_role("alert")
    for name in ("jpeg", "verifier"):
        expect(page.get_by_label(name)).to_be_checked()
    page.get_by_role("button", name="Score").press("Enter")
    expect(note).to_have_text("Choose an image first.")
    page.get_by_label("Images", exact=True).set_input_files(pictures[:1])
    page.get_by_role("button", name="Score").press("Enter")
    expect(note).to_have_text("Type a prompt: verifier reads it.")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    page.get_by_label("verifier").press("Space")
    page.get_by_label("Prompt", exact=True).press("Control+Enter")
    expect(page.locator("#scores data")).to_have_count(1)
    page.get_by_label("jpeg").press("Space")
    page.get_by_role("button", name="Score").press("Enter")
    expect(note).to_have_text("Tick a reward first.")
    page.get_by_label("Images", exact=True).set_input_files(pictures[:1] * 5)
    page.get_by_label("jpeg").press("Space")
    page.get_by_role("button", name="Score").press("Enter")
    expect(note).to_have_text("At most 5 images at once.")


def test_the_last_minute_is_that_of_the_server(page: Page, url: str, pictures: list[Path]) -> None:
    choose(page, url, pictures[:1])
    before = int(page.locator("#load tr", has_text="jpeg").locator("td").last.inner_text())
    with RewardClient(url) as client:
        client.score(pictures[:1], ["a"], rewards=["jpeg"])
        client.score([b"\x89PNG\r\n\x1a\n"] * 3, ["a"] * 3, rewards=["jpeg"])
    row = page.locator("#load tr", has_text="jpeg").locator("td")
    expect(row.last).to_have_text(str(before + 3))
    expect(row.nth(2)).to_contain_text(" ms")


def test_a_key_is_asked_for_kept_in_the_tab_and_sent(
    page: Page, rewards: Any, served: Callable[..., Any], pictures: list[Path], tmp_path: Path
) -> None:
    key, line = new_key("alice")
    (tmp_path / "keys.yaml").write_text(line, encoding="utf-8")
    with served(create_app(rewards, http=Http(keys=str(tmp_path / "keys.yaml")))) as url:
        page.goto(url)
        field = page.get_by_label("This server asks for a key")
        field.fill("rk_wrong")
        field.press("Enter")
        expect(page.locator("#key-note")).to_have_text("The server does not know this key.")
        field.fill(key)
        page.get_by_role("button", name="Use it").click()
        expect(field).to_be_hidden()
        page.get_by_label("Images", exact=True).set_input_files(pictures[:1])
        page.get_by_label("Prompt", exact=True).fill(CAPTION)
        assert len(shown(score(page).first)) == 2
        assert page.evaluate("[localStorage.length, document.cookie, sessionStorage['rewards-key']]") == [
            0,
            "",
            key,
        ]
        for language, command in (("curl", ["bash", "-c"]), ("Python", [sys.executable, "-c"])):
            code = copied(page, language)
            assert key not in code
            assert "1.0" in ran([*command, code], tmp_path, REWARDS_API_KEY=key, PYTHONPATH=str(ROOT))
        page.get_by_role("button", name="Forget the key").click()
        expect(field).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0
        page.goto("about:blank")


def test_a_key_in_the_address_is_not_in_the_code(page: Page, url: str, pictures: list[Path]) -> None:
    choose(page, url.replace("http://", "http://any:rk_secret@"), pictures[:1])
    expect(score(page)).to_have_count(1)
    expect(page.locator("#code")).to_contain_text(f"{url}/v1/scores")
    assert "rk_secret" not in page.inner_text("body")


def test_a_server_that_is_gone_is_said_and_found_again(page: Page, url: str, pictures: list[Path]) -> None:
    choose(page, url, pictures[:1])
    page.route("**/v1/**", lambda route: route.abort())
    page.get_by_role("button", name="Score").click()
    expect(page.get_by_role("alert")).to_have_text("The server cannot be reached. Is it running?")
    page.reload()
    expect(page.get_by_role("alert")).to_have_text("The server cannot be reached. Is it running?")
    page.unroute("**/v1/**")
    expect(page.get_by_role("checkbox")).to_have_count(2)
    expect(page.get_by_role("alert")).to_be_empty()


@pytest.mark.parametrize("name", FILES)
def test_every_file_says_what_it_may_do(name: str) -> None:
    headers = page_file(name).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"


def test_only_the_files_of_the_page_are_served(url: str) -> None:
    assert httpx.get(url).headers["content-type"] == "text/html; charset=utf-8"
    for path in ("/static/nothing.js", "/static/..%2Fpage.py", "/static/../page.py", "/static/"):
        assert httpx.get(url + path).status_code in {401, 404}
    folder = ROOT / "reward_services" / "http" / "static"
    assert {path.name for path in folder.iterdir()} == set(FILES)
