"""A real server on a loopback port over a random checkpoint, and the stock OpenAI client in front of it."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
import torch

from llmctl.config.serve import ServeConfig
from llmctl.inference.conversation import open_engine
from llmctl.inference.engine import Engine
from llmctl.serve.app import create_app
from llmctl.serve.generation import Service
from llmctl.serve.running import run_app
from llmctl.serve.server import listen
from tests.conftest import DATA
from tests.evals.tiny import write_checkpoint

MODEL = "tiny-random"
CONTEXT = 256
ROOMY = 4096


OPENAPI = DATA / "openai_openapi" / "openapi.json"
Check = Callable[[str, Any], None]


def honour_nullable(schema: Any) -> Any:
    """The file is OpenAPI 3.1 with 3.0's `nullable` marks, which JSON Schema does not know."""
    if isinstance(schema, list):
        return [honour_nullable(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: honour_nullable(value) for key, value in schema.items() if key != "nullable"}
    return {"anyOf": [plain, {"type": "null"}]} if schema.get("nullable") is True else plain


@pytest.fixture(scope="session")
def conforms() -> Check:
    """Validate a body against one of OpenAI's component schemas."""
    if not OPENAPI.is_file():
        pytest.skip("OpenAI's openapi.json is not on this machine")
    document = json.loads(OPENAPI.read_text())
    components = {"components": {"schemas": honour_nullable(document["components"]["schemas"])}}
    checked: dict[str, Any] = {}

    def check(name: str, body: Any) -> None:
        if name not in checked:
            schema = {"$ref": f"#/components/schemas/{name}", **components}
            checked[name] = jsonschema.Draft202012Validator(schema)
        checked[name].validate(body)

    return check


@dataclass
class Running:
    """A server that answers at `url`."""

    url: str
    engine: Engine
    service: Service
    stop: Callable[[], None]
    http: httpx.Client

    def client(self, key: str = "unused", **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.http.post(self.url + path, **options)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_checkpoint(tmp_path_factory.mktemp("model"), context=CONTEXT)


@pytest.fixture(scope="session")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose longest answers take many seconds."""
    return write_checkpoint(tmp_path_factory.mktemp("roomy"), context=ROOMY)


Start = Callable[..., AbstractContextManager[Running]]


@pytest.fixture(scope="session")
def start(checkpoint: Path) -> Start:
    """Run a server with the given configuration for the length of a `with` block."""

    @contextmanager
    def running(directory: Path = checkpoint, **config: Any) -> Iterator[Running]:
        settings = ServeConfig.model_validate({"port": 0, "device": "cpu", **config})
        engine = open_engine(directory, device="cpu", precision=settings.precision, max_running=settings.max_running)
        app = create_app(engine, settings, MODEL)
        answered: list[str] = []
        ready = threading.Event()

        def announce(url: str) -> None:
            answered.append(url)
            ready.set()

        thread = threading.Thread(target=run_app, args=(app, settings, listen(settings), announce), daemon=True)
        thread.start()
        assert ready.wait(30)
        try:
            with httpx.Client(timeout=60) as http:
                yield Running(answered[0], engine, app.state.service, app.state.stop, http)
        finally:
            app.state.stop()
            thread.join(30)
            engine.close()
        assert not thread.is_alive()

    return running


@pytest.fixture(scope="session")
def server(start: Start) -> Iterator[Running]:
    """One server for all tests that do not need a configuration of their own."""
    with start() as running:
        yield running


@pytest.fixture
def restored_log() -> Iterator[None]:
    """What a test does to the server's log is undone."""
    log = logging.getLogger("llmctl.serve")
    before = log.level, list(log.handlers), log.propagate
    yield
    log.setLevel(before[0])
    log.handlers[:] = before[1]
    log.propagate = before[2]
