"""No body of any kind makes the server fail: every answer is a success or an error object."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmctl.serve.requests import ChatRequest, CompletionRequest
from tests.serve.conftest import MODEL, Running

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
# Unpaired surrogates cannot be sent as UTF-8; test_limits sends them as escapes.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    SCALARS | TEXTS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=8
)
PATHS: list[tuple[str, type[Any], dict[str, Any]]] = [
    ("/v1/completions", CompletionRequest, {"model": MODEL, "prompt": "a", "max_tokens": 1}),
    (
        "/v1/chat/completions",
        ChatRequest,
        {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    ),
]


@pytest.mark.parametrize(("path", "form", "base"), PATHS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_any_field(
    server: Running, path: str, form: type[Any], base: dict[str, Any], data: st.DataObject
) -> None:
    names = st.sampled_from(sorted(form.model_fields)) | TEXTS
    changes = data.draw(st.dictionaries(names, VALUES, min_size=1, max_size=2))
    response = server.post(path, json={**base, **changes})
    if response.status_code == 200:
        return
    assert response.status_code in (400, 404), response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) < 1000
    assert error["param"] is None or any(name[:20] in error["param"] for name in {*changes, *base})


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=VALUES)
def test_any_json_at_all(server: Running, path: str, body: Any) -> None:
    response = server.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
