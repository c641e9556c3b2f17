"""The HTTP application: the OpenAI API's model list, completions and chat completions over one engine."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from llmctl import __version__
from llmctl.config.serve import ServeConfig
from llmctl.serve import errors, requests, responses
from llmctl.serve.backend import Backend
from llmctl.serve.chatformat import ChatFormat
from llmctl.serve.formats import Collected, CompletionFormat, Format
from llmctl.serve.generation import Generation, Service
from llmctl.serve.keys import KeyMiddleware, read_keys, require_policies
from llmctl.serve.metrics import CONTENT_TYPE, Metrics
from llmctl.serve.middleware import AccessMiddleware, BodyMiddleware
from llmctl.serve.openapi import document
from llmctl.serve.plan import Plan, plan_chat, plan_completion, plan_tokens, text_of_tokens
from llmctl.serve.requests import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

PAGE = Path(__file__).parent / "page.html"
PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}  # beside JSON
CLIENT_LEFT = 499  # nginx's number; nobody receives it

log = logging.getLogger("llmctl.serve")
router = APIRouter()


def create_app(engine: Backend, config: ServeConfig, model_name: str) -> FastAPI:
    """The application; `app.state.service` holds its state.

    Args:
        engine: generates; stays open when the application ends.
        config: bounds, and the name of the key's environment variable.
        model_name: what clients call the model.

    Raises:
        UsageError, InputError: the keys that are named cannot be had.
    """
    keys = read_keys(config)
    metrics = Metrics(engine, model_name)
    service = Service(engine, config, metrics, model_name)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="llmctl", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.service = service
    app.state.created = int(time.time())
    app.include_router(router)
    app.state.document = functools.cache(lambda: document(app, model_name, keys=keys is not None))
    errors.install(app, requests.FIELDS)
    # The last one added is the first to see a request.
    app.add_middleware(BodyMiddleware, max_bytes=config.max_body_bytes, timeout_s=config.body_timeout_s)
    app.add_middleware(KeyMiddleware, keys=keys)
    routes = [route.path for route in router.routes]  # type: ignore[attr-defined]
    require_policies(routes)
    app.add_middleware(AccessMiddleware, metrics=metrics, routes=routes, as_json=config.log_format == "json")
    return app


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while the engine lives, also while the server drains; 503 once it has failed and a restart would help."""
    service: Service = request.app.state.service
    if not service.engine.alive:
        return JSONResponse({"status": "failed"}, status_code=503)
    return JSONResponse({"status": "ok"})


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 while requests are taken, 503 once the server ends or its engine has failed."""
    service: Service = request.app.state.service
    if service.stopping or not service.engine.alive:
        return JSONResponse({"status": "stopping" if service.stopping else "failed"}, status_code=503)
    return JSONResponse({"status": "ready"})


@router.get("/version")
async def version() -> Response:
    """Which llmctl answers."""
    return JSONResponse({"version": __version__})


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """This description."""
    return JSONResponse(await run_in_threadpool(request.app.state.document))


@router.get("/", response_class=HTMLResponse)
async def page() -> Response:
    """A page to chat on, whole in one file."""
    return FileResponse(PAGE, media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)


@router.post("/tokenize")
async def tokenize(request: Request, body: TokenizeRequest) -> Response:
    """Text, or a chat, as token ids."""
    service: Service = request.app.state.service
    tokens = await run_in_threadpool(plan_tokens, service, body)
    return JSONResponse({"count": len(tokens), "max_model_len": service.engine.context, "tokens": tokens})


@router.post("/detokenize")
async def detokenize(request: Request, body: DetokenizeRequest) -> Response:
    """Token ids as text."""
    service: Service = request.app.state.service
    return JSONResponse({"prompt": await run_in_threadpool(text_of_tokens, service, body)})


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Prometheus text."""
    service: Service = request.app.state.service
    return Response(service.metrics.render(), media_type=CONTENT_TYPE)


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """The one served model."""
    service: Service = request.app.state.service
    return JSONResponse(responses.models(service.model_name, request.app.state.created, service.engine.context))


@router.post("/v1/completions", responses=STREAM)
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Continue text or token ids."""
    service: Service = request.app.state.service
    plan = await run_in_threadpool(plan_completion, service, body)
    return await _answer(
        request, plan, CompletionFormat(body, plan, service.engine.tokenizer), stream=body.wants_stream
    )


@router.post("/v1/chat/completions", responses=STREAM)
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Answer a chat."""
    service: Service = request.app.state.service
    plan = await run_in_threadpool(plan_chat, service, body)
    return await _answer(request, plan, ChatFormat(body, plan, service.engine.tokenizer), stream=body.wants_stream)


async def _answer(request: Request, plan: Plan, form: Format, *, stream: bool) -> Response:
    """Generate, and answer with one JSON body or a stream of events."""
    service: Service = request.app.state.service
    facts = request.state.facts
    facts |= {"prompt_tokens": plan.prompt_tokens, "stream": stream, "choices": plan.choices}
    if service.config.log_prompts:
        facts["prompts"] = [service.engine.tokenizer.decode(prompt) for prompt in plan.prompts]
    generation = service.start(plan.requests, request.state.client, facts, with_ends=plan.with_ids)
    if stream:
        return _EventStream(generation, form)
    choices = [Collected() for _ in range(len(plan.prompts) * plan.choices)]
    reading = asyncio.create_task(_collect(generation, form, choices))
    leaving = asyncio.create_task(_client_leaves(request.receive))
    try:
        await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            return Response(status_code=CLIENT_LEFT)
        await reading
        return JSONResponse(form.whole(choices))
    except Exception:
        generation.close("error")
        raise
    finally:
        reading.cancel()
        leaving.cancel()
        generation.close()


async def _collect(generation: Generation, form: Format, choices: Sequence[Collected]) -> None:
    async for index, event in generation:
        choices[index].add(event)
        form.usage.completion_tokens += len(event.token_ids)


async def _client_leaves(receive: Receive) -> None:
    """Return once the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


class _EventStream(StreamingResponse):
    """Server-sent events that stop the engine when the client is gone, wherever it left."""

    def __init__(self, generation: Generation, form: Format) -> None:
        super().__init__(
            _events(generation, form), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.close()


async def _events(generation: Generation, form: Format) -> AsyncIterator[bytes]:
    """The stream's bytes. `[DONE]` ends a whole answer only; a failure ends in an error event."""
    try:
        for body in form.opening():
            yield responses.sse(body)
        async for index, event in generation:
            form.usage.completion_tokens += len(event.token_ids)
            for body in form.chunks(index, event):
                yield responses.sse(body)
        for body in form.closing():
            yield responses.sse(body)
        yield responses.SSE_DONE
    except Exception as error:
        told = errors.from_exception(error)
        if told.status == 500:
            log.exception("a stream failed")
        generation.close("error")
        yield responses.sse(told.body())
