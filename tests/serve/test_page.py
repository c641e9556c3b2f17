"""The chat page in a real browser: Debian's Chromium, headless, driven by Playwright."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import MODEL, Start
from tests.serve.test_running import eventually

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
KEY = "open-sesame"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def opened(browser: Any, url: str, **options: Any) -> tuple[Any, list[str]]:
    """The page, and what went wrong in it or left this machine."""
    page, wrong = browser.new_context(viewport={"width": 900, "height": 700}, **options).new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda sent: None if sent.url.startswith((url, "data:")) else wrong.append(sent.url))
    page.goto(url + "/")
    page.get_by_role("heading", name=MODEL).wait_for()
    return page, wrong


def ask(page: Any, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_label("Message", exact=True).press("Enter")


def settings(page: Any, **values: str) -> None:
    page.get_by_text("System prompt and sampling").click()
    for name, value in values.items():
        page.locator(f"#{name}").fill(value)


def test_a_chat_is_streamed_and_asked_again(browser: Any, start: Start, tmp_path: Path) -> None:
    with start() as server:
        page, wrong = opened(browser, server.url)
        settings(page, temperature="0", max_tokens="24", system="Be short.")
        ask(page, "What is <b>this</b>?")
        page.get_by_text("tokens,").wait_for()
        assert page.locator("article.user p").text_content() == "What is <b>this</b>?"  # text, never markup
        first = page.locator("article.assistant p").text_content()
        messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is <b>this</b>?"}]
        same = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 24}
        assert first == server.post("/v1/chat/completions", json=same).json()["choices"][0]["message"]["content"]
        page.get_by_role("button", name="Regenerate").click()
        page.get_by_text("tokens,").wait_for()
        assert page.locator("article").count() == 2
        assert page.locator("article.assistant p").text_content() == first
        page.screenshot(path=tmp_path / "page.png")
        page.get_by_role("button", name="New chat").click()
        assert page.locator("article").count() == 0
        assert wrong == []


def test_a_long_answer_can_be_stopped(browser: Any, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    with start() as server:
        step = server.engine._scheduler.step
        monkeypatch.setattr(server.engine._scheduler, "step", lambda: (time.sleep(0.05), step()))
        page, wrong = opened(browser, server.url)
        settings(page, seed="1")
        ask(page, "hello")
        eventually(lambda: len(page.locator("article.assistant p").text_content()) > 3)
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("stopped", exact=True).wait_for()
        assert page.get_by_role("button", name="Send").is_visible()
        eventually(lambda: not server.service.live)
        page.get_by_role("button", name="Regenerate").click()  # what came is an answer, which can be asked for again
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("stopped", exact=True).wait_for()
        assert page.locator("article").count() == 2
        assert wrong == []


def test_a_refusal_is_shown(browser: Any, start: Start) -> None:
    with start(max_tokens=8) as server:
        page, _ = opened(browser, server.url)
        settings(page, max_tokens="9")
        ask(page, "hello")
        page.get_by_text("max_completion_tokens: 9 is more than the 8 this server allows").wait_for()


def test_where_a_key_is_needed_the_browser_asks_for_it(
    browser: Any, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_SERVE_KEY", KEY)
    with start(api_key_env="TEST_SERVE_KEY") as server:
        with pytest.raises(Exception, match="ERR_INVALID_AUTH_CREDENTIALS"):  # nobody to answer the browser's question
            browser.new_context().new_page().goto(server.url + "/")
        page, wrong = opened(browser, server.url, http_credentials={"username": "me", "password": KEY})
        settings(page, max_tokens="4")
        ask(page, "hello")
        page.get_by_text("tokens,").wait_for()
        assert wrong == []
