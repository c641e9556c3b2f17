"""The server's log: one plain line per response, and nothing that a client said."""

import logging
import re

import httpx
import pytest

from llmctl.serve.server import log_to_stderr
from tests.serve.conftest import MODEL, Start
from tests.serve.test_running import eventually

KEY, PROMPT = "sesame-open", "the secret list"


pytestmark = pytest.mark.usefixtures("restored_log")
LISTENING = r"listening on http://127\.0\.0\.1:\d+"
COMPLETION = r"POST /v1/completions 200 \d+\.\d ms"
UNKNOWN = r"GET other 401 \d+\.\d ms"


def _served(start: Start, expected: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What stderr got of two requests, once each of `expected` is there.

    Another test's server may still be answering clients that left, so other lines may stand between.
    """
    text = ""
    with start(api_key_env="TEST_SERVE_KEY") as server:
        headers = {"Authorization": f"Bearer {KEY}"}
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 2}
        assert server.post("/v1/completions", json=body, headers=headers).status_code == 200
        assert httpx.get(server.url + "/made/up?key=" + KEY).status_code == 401

        def arrived() -> bool:
            nonlocal text
            out, err = capsys.readouterr()
            assert out == ""
            text += err
            return all(any(re.fullmatch(pattern, line) for line in text.splitlines()) for pattern in expected)

        eventually(arrived)
    assert KEY not in text
    assert PROMPT not in text
    return text.splitlines()


def test_the_log_says_where_and_what_was_answered(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEST_SERVE_KEY", KEY)
    log_to_stderr()
    log_to_stderr()  # a second time changes nothing
    lines = _served(start, (LISTENING, COMPLETION, UNKNOWN), capsys)
    assert sum(line.startswith("listening") for line in lines) == 1


def test_a_quiet_log_keeps_warnings(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEST_SERVE_KEY", KEY)
    log_to_stderr(quiet=True)
    assert _served(start, (), capsys) == []
    logging.getLogger("llmctl.serve").warning("something is odd")
    assert capsys.readouterr().err == "something is odd\n"
