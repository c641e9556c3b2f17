"""The HTTP application: the OpenAI API's model list, completions and chat completions over one engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Sequence

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from llmctl.config.errors import UsageError
from llmctl.config.serve import ServeConfig
from llmctl.inference.engine import Engine
from llmctl.serve import errors, requests, responses
from llmctl.serve.formats import ChatFormat, Collected, CompletionFormat, Format
from llmctl.serve.generation import Generation, Service
from llmctl.serve.metrics import CONTENT_TYPE, Metrics
from llmctl.serve.middleware import AccessMiddleware, BodyMiddleware, KeyMiddleware
from llmctl.serve.plan import Plan, plan_chat, plan_completion
from llmctl.serve.requests import ChatRequest, CompletionRequest

CLIENT_LEFT = 499  # nginx's number; nobody receives it

log = logging.getLogger("llmctl.serve")
router = APIRouter()


def create_app(engine: Engine, config: ServeConfig, model_name: str) -> FastAPI:
    """The application; `app.state.service` holds its state.

    Args:
        engine: generates; stays open when the application ends.
        config: bounds, and the name of the key's environment variable.
        model_name: what clients call the model.

    Raises:
        UsageError: `api_key_env` names a variable that is not set.
    """
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
    errors.install(app, requests.FIELDS)
    # The last one added is the first to see a request.
    app.add_middleware(BodyMiddleware, max_bytes=config.max_body_bytes, timeout_s=config.body_timeout_s)
    if config.api_key_env:
        app.add_middleware(KeyMiddleware, key=_key(config.api_key_env))
    app.add_middleware(AccessMiddleware, metrics=metrics, routes=[route.path for route in router.routes])  # type: ignore[attr-defined]
    return app


def _key(variable: str) -> str:
    key = os.environ.get(variable, "")
    if not key:
        raise UsageError(
            f"the environment variable {variable} is empty or not set", hint="put the key in it, or clear api_key_env"
        )
    return key


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while requests are taken, 503 once the server ends or its engine has failed."""
    service: Service = request.app.state.service
    if service.stopping or not service.engine.alive:
        return JSONResponse({"status": "stopping" if service.stopping else "failed"}, status_code=503)
    return JSONResponse({"status": "ok"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus text."""
    service: Service = request.app.state.service
    return Response(service.metrics.render(), media_type=CONTENT_TYPE)


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """The one served model."""
    service: Service = request.app.state.service
    return JSONResponse(responses.models(service.model_name, request.app.state.created, service.engine.context))


@router.post("/v1/completions")
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Continue text or token ids."""
    service: Service = request.app.state.service
    plan = await run_in_threadpool(plan_completion, service, body)
    return await _answer(
        request, plan, CompletionFormat(body, plan, service.engine.tokenizer), stream=body.wants_stream
    )


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Answer a chat."""
    service: Service = request.app.state.service
    plan = await run_in_threadpool(plan_chat, service, body)
    return await _answer(request, plan, ChatFormat(body, plan, service.engine.tokenizer), stream=body.wants_stream)


async def _answer(request: Request, plan: Plan, form: Format, *, stream: bool) -> Response:
    """Generate, and answer with one JSON body or a stream of events."""
    service: Service = request.app.state.service
    generation = service.start(plan.requests)
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
            if event.text or event.logprobs or event.finish_reason:
                yield responses.sse(form.chunk(index, event))
        for body in form.closing():
            yield responses.sse(body)
        yield responses.SSE_DONE
    except Exception as error:
        told = errors.from_exception(error)
        if told.status == 500:
            log.exception("a stream failed")
        generation.close("error")
        yield responses.sse(told.body())
