"""Where a server may listen, and what it is called."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from llmctl.config.serve import ServeConfig
from llmctl.serve.server import default_name, listen, options_of, url_of


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],  # noqa: S104
)
def test_loopback_is_known(host: str, is_loopback: bool) -> None:
    assert ServeConfig(host=host).is_loopback is is_loopback


def test_the_default_is_loopback() -> None:
    assert ServeConfig().is_loopback


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": "http://x"},
        {"host": ""},
        {"port": 65536},
        {"api_key_env": "MY KEY"},
        {"max_n": 0},
        {"precision": "fp8"},
    ],
)
def test_wrong_values_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ServeConfig.model_validate(wrong)


def test_port_zero_becomes_a_real_one() -> None:
    with listen(ServeConfig(port=0)) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert not url_of(listener).endswith(":0")


def test_a_directory_gives_its_name(tmp_path: Path) -> None:
    assert default_name(tmp_path / "mine") == "mine"


def test_the_engine_gets_all_of_its_part() -> None:
    given = {"cache_tokens": 512, "step_tokens": 64, "prefix_cache": False, "weights": "int8", "cache_bits": 8}
    options = options_of(ServeConfig.model_validate({**given, "draft_tokens": 3}))
    assert {name: getattr(options, name) for name in given} == given
    assert options.draft_tokens == 3
