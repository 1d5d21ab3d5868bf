"""The page in headless Chromium: a conversation, a race, keyboard alone, narrow and dark, a server that goes away."""

from __future__ import annotations

import json
import os
import shutil
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.server_process import METHOD, Served, serving

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the page is driven by playwright: pip install playwright"
)

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Served) -> Iterator[Any]:
    """The page of the shared server; fails on an error of its script and on a request to anybody else."""
    yield from opened(browser, server)


def opened(browser: Any, server: Served, **how: Any) -> Iterator[Any]:
    page = browser.new_page(**how)
    home, faults = server.url.removesuffix("/v1"), []
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda one: None if one.url.startswith((home, "data:")) else faults.append(one.url))
    page.goto(home)
    page.wait_for_selector("#method option:nth-child(2)", state="attached")
    page.fill("#length", "40")
    yield page
    page.close()
    assert not faults


def ask(page: Any, text: str) -> str:
    """Send a message by the keyboard, and return what is answered."""
    count = page.locator("article.assistant").count()
    page.fill("#question", text)
    page.press("#question", "Enter")
    page.locator("article.assistant .about").nth(count).wait_for()
    return str(page.locator("article.assistant .said").nth(count).text_content())


def test_a_conversation_is_the_models(page: Any, alone: Any) -> None:
    messages: list[dict[str, str]] = []
    for turn in ("Hello, hello", "And again"):
        messages.append({"role": "user", "content": turn})
        expected = alone.generate(messages, max_new_tokens=40, temperature=0).text
        assert ask(page, turn) == expected
        messages.append({"role": "assistant", "content": expected})
    assert page.locator(".token.drafted").count() > 0
    assert page.locator(".token.own").count() > 0
    assert float(page.text_content("#tau")) > 1
    assert "passes" in page.locator("article.assistant .about span").first.text_content()


@pytest.mark.usefixtures("real_smollm2")
def test_smollm2_holds_a_conversation(browser: Any) -> None:
    with serving("smollm2", "-d", "auto", SLIPSTREAM_CACHE=os.environ["SLIPSTREAM_CACHE"]) as served:
        for page in opened(browser, served):
            assert "Paris" in ask(page, "What is the capital of France? Answer in one sentence.")
            assert "France" in ask(page, "In which country is it?")
            assert page.locator(".token.drafted").count() > 0


def test_the_draft_of_a_pass_is_drawn_and_told(page: Any) -> None:
    ask(page, "Hello, hello")
    assert page.locator("#tree circle").count() > 1
    assert "guessed" in page.text_content("#tree-text")


def test_a_race_shows_one_text_twice(page: Any) -> None:
    page.fill("#question", "Hello, hello")
    page.click("#race")
    page.wait_for_selector("article.race .about")
    texts = page.locator("article.race .said").all_text_contents()
    assert len(texts) == 2
    assert texts[0] == texts[1] != ""
    assert "times plain's speed" in page.text_content("article.race .about")
    assert "the same text" in page.text_content("article.race .about")


def test_escape_stops_an_answer_and_the_next_one_comes(page: Any, alone: Any) -> None:
    def endless(route: Any) -> None:
        never = {"logit_bias": {str(token): -100 for token in alone.target.eos_token_ids}}
        route.continue_(post_data=json.dumps({**route.request.post_data_json, **never}))

    page.route("**/v1/chat/completions", endless)
    page.fill("#length", "4000")
    page.fill("#question", "Hello")
    page.press("#question", "Enter")
    page.wait_for_selector("article.assistant .token")
    page.keyboard.press("Escape")
    page.locator("#status", has_text="Stopped").wait_for()
    page.unroute("**/v1/chat/completions")
    page.fill("#length", "10")
    ask(page, "Again")


def test_all_of_it_is_reached_by_the_keyboard(page: Any) -> None:
    reached = set()
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"question", "send", "race", "clear", "method", "temperature", "seed", "length", "key"} <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(
    width: int, scheme: str, browser: Any, server: Served, tmp_path: Path
) -> None:
    for page in opened(browser, server, viewport={"width": width, "height": 844}, color_scheme=scheme):
        page.fill("#length", "500")
        assert len(ask(page, "Hello, hello")) > 20
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.screenshot(path=tmp_path / "page.png")


def test_every_field_has_a_label(page: Any) -> None:
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select, textarea')].filter(one => !one.labels.length).map(one => one.id)"
    )
    assert unnamed == []


def test_a_server_that_goes_away_is_said(browser: Any, folder: Path, tmp_path: Path) -> None:
    with serving(folder, *METHOD, "--drain", "0", SLIPSTREAM_CACHE=str(tmp_path)) as served:
        for page in opened(browser, served):
            served.process.send_signal(signal.SIGTERM)
            served.process.wait(timeout=30)
            page.fill("#question", "Hello")
            page.press("#question", "Enter")
            page.wait_for_selector("#status.error")
            assert "went away" in page.text_content("#status")
            assert page.is_enabled("#send")


def test_the_page_may_load_nothing_from_elsewhere(server: Served) -> None:
    with urllib.request.urlopen(server.url.removesuffix("/v1")) as answer:
        policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
