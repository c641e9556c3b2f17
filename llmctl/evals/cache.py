"""Answers that were given before, kept beside the store by model and request: a killed evaluation goes on from them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llmctl.config.errors import InputError
from llmctl.evals.requests import (
    Answer,
    Generation,
    Likelihood,
    Likely,
    Model,
    Request,
    Rolling,
    Skipped,
    Written,
    key_of,
)

FORMAT = 1  # to be raised when the same request would be answered otherwise
KINDS: Mapping[str, Callable[..., Answer]] = {"likely": Likely, "written": Written}
LOOKED_UP = 500  # keys in one query


class RequestCache:
    """The answers of one model, in one SQLite file; several processes may use it at a time.

    Args:
        directory: where such files are; None keeps nothing.
        identity: names the model and everything that decides its answers.
    """

    def __init__(self, directory: Path | None, identity: str) -> None:
        self._path = None
        if directory is not None:
            name = hashlib.sha256(f"{FORMAT}:{identity}".encode()).hexdigest()[:32]
            self._path = directory / f"{name}.sqlite"
            directory.mkdir(parents=True, exist_ok=True)
        with self._told():
            self._database = sqlite3.connect(self._path or ":memory:", timeout=60)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")

    def found(self, keys: Sequence[str]) -> dict[str, Answer]:
        """Those of the answers that are known, by key."""
        answers: dict[str, Answer] = {}
        with self._told():
            for start in range(0, len(keys), LOOKED_UP):
                some = keys[start : start + LOOKED_UP]
                marks = ",".join("?" * len(some))
                query = f"SELECT key, answer FROM answers WHERE key IN ({marks})"  # noqa: S608 - marks alone
                answers |= {key: _read(text) for key, text in self._database.execute(query, some)}
        return answers

    def keep(self, answers: Mapping[str, Answer]) -> None:
        """Store answers; those that are none are asked for again the next time."""
        rows = [(key, _written(answer)) for key, answer in answers.items() if not isinstance(answer, Skipped)]
        with self._told(), self._database:
            self._database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise InputError(
                f"the cache of requests {self._path} fails: {error}", hint="delete it, or run with reuse=false"
            ) from error


def _written(answer: Likely | Written) -> str:
    return json.dumps({"kind": type(answer).__name__.lower(), **asdict(answer)})


def _read(text: str) -> Answer:
    content: dict[str, Any] = json.loads(text)
    kind = KINDS[content.pop("kind")]
    if "is_greedy" in content:
        content["tokens"] = tuple(content["tokens"])
    return kind(**content)


class RefusedError(Exception):
    """A request has no answer, and that is not allowed.

    Args:
        key: of the request.
        skipped: why.
    """

    def __init__(self, key: str, skipped: Skipped) -> None:
        super().__init__(skipped.detail)
        self.key, self.skipped = key, skipped


def answered(
    model: Model,
    requests: Sequence[Request],
    cache: RequestCache,
    done: Callable[[int], None],
    refused: Collection[str] = (),
) -> list[Answer]:
    """An answer to each request, in order; what is known is not asked again, and what is asked twice only once.

    Args:
        model: what is asked.
        requests: what to ask.
        cache: of the model.
        done: told how many requests have their answer.
        refused: reasons for no answer that are not allowed.

    Raises:
        RefusedError: there is such a request; answers up to then are kept.
    """
    keys = [key_of(request) for request in requests]
    answers = cache.found(list(dict.fromkeys(keys)))
    open_ones = {key: request for key, request in zip(keys, requests, strict=True) if key not in answers}
    # What begins alike is asked together, so that the model reads it once.
    waiting = sorted(open_ones, key=lambda key: _order(open_ones[key]))
    known = sum(key in answers for key in keys)
    done(known)
    start = 0
    while start < len(waiting):
        is_text = isinstance(open_ones[waiting[start]], Generation)
        some = waiting[start : start + (model.texts_at_once if is_text else model.at_once)]
        new = dict(zip(some, model.answer([open_ones[key] for key in some]), strict=True))
        cache.keep(new)
        for key, answer in new.items():
            if isinstance(answer, Skipped) and answer.reason in refused:
                raise RefusedError(key, answer)
        answers |= new
        start += len(some)
        done(min(known + start, len(requests)))
    done(len(requests))
    return [answers[key] for key in keys]


def _order(request: Request) -> tuple[str, str, str]:
    if isinstance(request, Rolling):
        return "rolling", request.text, ""
    follows = request.continuation if isinstance(request, Likelihood) else f"{request.draw:09}"
    return type(request).__name__, request.prompt.text + "".join(said for _, said in request.prompt.chat), follows
