"""Keys from a file of hashes, quotas for each, and the rule that every route has a policy."""

import hashlib
from pathlib import Path

import httpx
import pytest

from llmctl.config.errors import InputError
from llmctl.config.serve import ServeConfig
from llmctl.serve.errors import ApiError
from llmctl.serve.keys import Keys, digest, read_keys, require_policies
from llmctl.serve.quotas import MOST_CLIENTS, Quotas
from tests.serve.conftest import MODEL, Start
from tests.serve.test_running import eventually, metrics


def written(path: Path, **keys: str) -> str:
    lines = [f"{name} {hashlib.sha256(key.encode()).hexdigest()}\n" for name, key in keys.items()]
    path.write_text("# who may ask\n\n" + "".join(lines))
    return str(path)


def test_a_file_of_hashes_says_who_asks(tmp_path: Path) -> None:
    keys = read_keys(ServeConfig(api_key_file=written(tmp_path / "keys", ann="first", bob="second")))
    assert keys is not None
    assert [keys.holder(key) for key in (b"first", b"second", b"third", b"", b"first ")] == [
        "ann",
        "bob",
        None,
        None,
        None,
    ]
    assert read_keys(ServeConfig()) is None


def test_the_environment_adds_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_SERVE_KEY", "third")
    keys = read_keys(ServeConfig(api_key_env="TEST_SERVE_KEY", api_key_file=written(tmp_path / "keys", ann="first")))
    assert keys == Keys({"environment": digest(b"third"), "ann": digest(b"first")})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ann secret\n", "line 1: not a new name"),
        (f"ann {'0' * 64}\nann {'1' * 64}\n", "line 2: not a new name"),
        (f"environment {'0' * 64}\n", "line 1"),
        ("# nobody\n", "holds no key"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(InputError, match=says):
        read_keys(ServeConfig(api_key_file=str(tmp_path / "keys")))


def test_a_route_without_a_policy_stops_the_start() -> None:
    with pytest.raises(AssertionError, match="/v1/secrets"):
        require_policies(["/health", "/v1/secrets"])


def test_a_bucket_refills_evenly() -> None:
    now = [0.0]
    quotas = Quotas(2, 600, clock=lambda: now[0])
    quotas.take("ann", 500)
    quotas.take("bob", 600)  # each client has its own
    with pytest.raises(ApiError, match="600 tokens a minute is used up") as caught:
        quotas.take("ann", 200)
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "10")  # 100 more at 10 a second
    now[0] = 10.0
    quotas.take("ann", 200)
    with pytest.raises(ApiError, match="2 requests a minute is used up") as caught:
        quotas.take("ann", 1)
    assert caught.value.headers["Retry-After"] == "20"
    now[0] = 30.0
    quotas.take("ann", 1)
    quotas.give_back("ann", 10_000)
    now[0] = 60.0
    quotas.take("ann", 600)  # never more than a minute's worth
    with pytest.raises(ApiError, match="more than the 600 a minute") as caught:
        quotas.take("ann", 601)
    assert caught.value.status == 400


def test_clients_without_end_take_no_memory_without_end() -> None:
    quotas = Quotas(1, None, clock=lambda: 0.0)
    for number in range(MOST_CLIENTS + 5):
        quotas.take(str(number), 1)
    assert len(quotas._clients) == MOST_CLIENTS


def test_a_key_has_its_quota_and_gets_back_what_it_did_not_use(start: Start, tmp_path: Path) -> None:
    keys = written(tmp_path / "keys", ann="first", bob="second")
    body = {"model": MODEL, "prompt": [5], "max_tokens": 39, "stop": None, "temperature": 0, "ignore_eos": True}
    with start(api_key_file=keys, tokens_per_minute=60, requests_per_minute=4) as server:

        def asked(key: str, **change: object) -> httpx.Response:
            return server.post("/v1/completions", json={**body, **change}, headers={"Authorization": f"Bearer {key}"})

        assert asked("first").status_code == 200
        refusal = asked("first")  # 40 of 60 tokens are gone
        assert refusal.status_code == 429
        assert 15 <= int(refusal.headers["Retry-After"]) <= 20
        assert "quota of 60 tokens a minute" in refusal.json()["error"]["message"]
        assert asked("second", max_tokens=2).status_code == 200  # whose quota it is not
        eventually(lambda: not server.service.live)
        assert [asked("second", max_tokens=2).status_code for _ in range(4)] == [200, 200, 200, 429]


def test_one_request_may_cost_so_many_tokens(start: Start) -> None:
    body = {"model": MODEL, "prompt": [5, 6], "max_tokens": 8, "n": 3}
    with start(max_request_tokens=29) as server:
        refusal = server.post("/v1/completions", json=body)
        assert refusal.status_code == 400
        assert "30 tokens" in refusal.json()["error"]["message"]
        assert server.post("/v1/completions", json={**body, "n": 2}).status_code == 200
        assert metrics(server)["llmctl:http_responses_total{route=/v1/completions,status=400}"] == 1
