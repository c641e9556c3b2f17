"""What the server says of itself, and that it does as it says."""

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from llmctl.serve.keys import POLICIES
from tests.serve.conftest import MODEL, Running, Start

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,allow_header_conformance"
)


def test_every_route_and_the_one_model_are_described(server: Running) -> None:
    told = httpx.get(server.url + "/openapi.json").json()
    assert told["openapi"].startswith("3.1")
    assert told["paths"].keys() == POLICIES.keys()
    assert "security" not in told["paths"]["/v1/models"]["get"]
    schemas = told["components"]["schemas"]
    assert schemas["ChatRequest"]["properties"]["model"]["enum"] == [MODEL]
    assert schemas["CompletionRequest"]["properties"]["best_of"]["enum"] == [None, 1]
    assert "422" not in str(told)
    for path, (operation,) in ((path, methods.values()) for path, methods in told["paths"].items()):
        assert {"200", "400", "413", "500"} <= operation["responses"].keys()
        assert ("401" in operation["responses"]) == (POLICIES[path] == "key")


def test_where_a_key_is_asked_for_it_is_said(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_SERVE_KEY", "sesame-open")
    with start(api_key_env="TEST_SERVE_KEY") as server:
        told = httpx.get(server.url + "/openapi.json", headers={"Authorization": "Bearer sesame-open"}).json()
        assert told["paths"]["/v1/models"]["get"]["security"] == [{"key": []}]
        assert "security" not in told["paths"]["/health"]["get"]
        assert told["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_schemathesis_finds_no_fault_and_no_status_that_is_not_described(
    server: Running, tmp_path: Path, mode: str
) -> None:
    pytest.importorskip("schemathesis")
    bounded = ["--phases", "fuzzing", "-n", "12", "--seed", "1", "--mode", mode, "--suppress-health-check", "all"]
    asked = [f"{server.url}/openapi.json", "--checks", CHECKS, *bounded, "--no-color"]
    ran = subprocess.run(
        [Path(sys.executable).parent / "schemathesis", "run", *asked],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-5000:]
    assert re.search(r"(\d+) generated, \1 passed", ran.stdout)
