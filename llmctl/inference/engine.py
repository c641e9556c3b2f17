"""The generation engine: one thread owns the model, any thread may ask."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Self

import torch

from llmctl.config.errors import InputError, UsageError
from llmctl.inference.constraint import Forms, Matcher
from llmctl.inference.detokenizer import Detokenizer
from llmctl.inference.linears import prepare
from llmctl.inference.options import Options
from llmctl.inference.request import Completion, Constraint, Event, FinishReason, Request, Score, TokenLogprob
from llmctl.inference.scheduler import Counts, Scheduler
from llmctl.inference.score import Pair, ScoreJob
from llmctl.inference.sequence import SequenceState
from llmctl.model import huggingface
from llmctl.model.transformer import Transformer
from llmctl.tokens.tokenizer import Tokenizer

DEFAULT = Options()
Deliver = Callable[[Event | BaseException], None]
"""Takes the events of one request, or what ended the engine before the last of them; runs on the engine's thread."""


class EngineClosedError(RuntimeError):
    """The engine was closed before it had answered, or before it was asked."""


class Handle:
    """The answer to one request, as it comes. Iterate it once, from any thread.

    Args:
        request: what was asked.
        deliver: takes the events in place of this handle, which then can only cancel.
    """

    def __init__(self, request: Request, deliver: Deliver | None = None) -> None:
        self.request = request
        self._deliver = deliver
        self._events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
        self._sequence: SequenceState | None = None
        self._ended = False

    def __iter__(self) -> Iterator[Event]:
        """Yield events until the one with a finish_reason; raise what the engine's thread raised, if it did."""
        if self._deliver is not None:
            raise ValueError("the events of this request are delivered elsewhere")
        while not self._ended:
            event = self._events.get()
            if isinstance(event, BaseException):
                self._ended = True
                raise event
            self._ended = event.finish_reason is not None
            yield event

    def cancel(self) -> None:
        """Stop generating; the last event then says `cancelled`. Harmless when all is done."""
        if self._sequence is not None:
            self._sequence.cancelled = True

    def result(self) -> Completion:
        """Wait for the whole answer."""
        ids: list[int] = []
        texts: list[str] = []
        logprobs: list[TokenLogprob] = []
        prompt: tuple[TokenLogprob | None, ...] | None = None
        reason: FinishReason = "cancelled"
        for event in self:
            prompt = event.prompt_logprobs or prompt
            ids += event.token_ids
            texts.append(event.text)
            logprobs += event.logprobs or ()
            reason = event.finish_reason or reason
        wanted = self.request.logprobs is not None
        return Completion(tuple(ids), "".join(texts), reason, tuple(logprobs) if wanted else None, prompt)


class Engine:
    """Generates and scores. Close it, or use it as a context manager.

    Args:
        model: owned by the engine's thread from now on.
        tokenizer: the model's; None for requests in ids with stop_ids of their own, whose text stays empty.
        max_running: most sequences generated at one time; further ones wait.
        options: see there.

    Attributes:
        model: as given.
        context: most tokens of a sequence, prompt included; that of the model.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer | None, *, max_running: int = 16, options: Options = DEFAULT
    ) -> None:
        if tokenizer is not None and tokenizer.vocab_size > model.vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model {model.vocab_size}",
                hint="use the tokenizer that the model was trained with",
            )
        if options.draft is not None and options.draft.vocab_size != model.vocab_size:
            raise InputError(
                f"the drafting model has {options.draft.vocab_size} ids, the model {model.vocab_size}",
                hint="draft with a model that was trained with the same tokenizer",
            )
        if options.draft is not None and options.draft.config.context < model.config.context:
            raise InputError(
                f"the drafting model reads {options.draft.config.context} tokens, the model {model.config.context}",
                hint="draft with a model of the same context at least",
            )
        self.model = model
        self.context = model.config.context
        self._tokenizer = tokenizer.padded(model.vocab_size) if tokenizer is not None else None
        self._scheduler = Scheduler(model, max_running, options)
        self._scoring: deque[ScoreJob] = deque()
        self._arrived: deque[SequenceState | ScoreJob] = deque()
        self._wake = threading.Condition()
        self._ended: BaseException | None = None
        self._threads = torch.get_num_threads()  # a new thread takes what was set last, which others may have
        self._thread = threading.Thread(target=self._run, name="llmctl-engine", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        max_running: int = 16,
        options: Options = DEFAULT,
        spare_cores: int = 0,
    ) -> Engine:
        """Open a checkpoint directory, its tokenizer with it. Errors are those of `huggingface.load`."""
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, threads - spare_cores))  # they would wait for one that works on something else
        laid_out: list[Future[None]] = []
        try:
            # The weights are read and laid out without Python's lock; each worker by itself, as one may have to wait.
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                tokenizer = pool.submit(Tokenizer.open, directory)
                model = huggingface.load(directory, dtype=dtype, device=device)
                model = prepare(model, options.weights, lambda work: laid_out.append(pool.submit(work)))
            for each in laid_out:
                each.result()
        finally:
            torch.set_num_threads(threads)
        return cls(model, tokenizer.result(), max_running=max_running, options=options)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        if self._tokenizer is None:
            raise ValueError("this engine was made without a tokenizer")
        return self._tokenizer

    @property
    def alive(self) -> bool:
        """Whether requests are taken: not closed, and no step has failed."""
        return self._ended is None

    @property
    def running(self) -> int:
        """Sequences in the batch whose last event is still to come."""
        return sum(not sequence.done for sequence in tuple(self._scheduler.running))

    @property
    def counts(self) -> Counts:
        """What happened since the engine began."""
        return self._scheduler.counts

    @property
    def cache_usage(self) -> float:
        """Share of the KV cache that sequences occupy, 0 to 1; prefixes that are only kept do not count."""
        pool = self._scheduler.pool
        return 1 - pool.unused / pool.count

    @property
    def waiting(self) -> int:
        """Sequences that wait for a place in the batch."""
        return len(self._scheduler.waiting) + len(self._arrived)

    def submit(self, request: Request, deliver: Deliver | None = None) -> Handle:
        """Queue a request and return at once.

        Args:
            request: what to generate.
            deliver: called with each event, and with what ended the engine if it ends before the last event. It must
                neither block nor raise: every sequence waits for it. None to read the events from the handle.

        Raises:
            UsageError: the prompt leaves no room in the context, or holds an id that there is none of; the constraint
                cannot be compiled.
            EngineClosedError: the engine is closed, or a step failed; the cause is attached.
        """
        handle, sequence = self._prepared(request, deliver, whole=False)
        self._enqueue(sequence)
        return handle

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer all requests, in their order.

        They are queued at once, so which of them share a step, and with it the rounding, is the same every time.
        """
        prepared = [self._prepared(request, None, whole=True) for request in requests]
        handles = [handle for handle, _ in prepared]
        try:
            self._enqueue(*(sequence for _, sequence in prepared))
            return [handle.result() for handle in handles]
        finally:
            for handle in handles:  # on an interrupt, leave nothing running; otherwise all are done
                handle.cancel()

    def score(self, pairs: Sequence[Pair], *, batch_tokens: int = 8192) -> list[Score]:
        """Log-likelihood of each continuation after its context.

        Args:
            pairs: token ids of context and continuation, at least one each.
            batch_tokens: most tokens of one forward pass; what pairs share with the one before them does not count.

        Raises:
            UsageError: a pair is empty on a side, longer than the context, or holds an id that there is none of.
        """
        job = ScoreJob(pairs, batch_tokens, self.context, self.model.vocab_size)
        if not job.future.done():
            self._enqueue(job)
        return job.future.result()

    def close(self) -> None:
        """End the thread. Whoever still waits gets an `EngineClosedError`."""
        with self._wake:
            self._ended = self._ended or EngineClosedError("the engine is closed")
            self._wake.notify()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def check_constraint(self, constraint: Constraint) -> None:
        """Compile a constraint, which may take a while; `submit` then finds it at hand.

        Raises:
            UsageError: it cannot be compiled.
        """
        self._forms.matcher(constraint)

    def _prepared(self, request: Request, deliver: Deliver | None, *, whole: bool) -> tuple[Handle, SequenceState]:
        """A request checked and ready to be queued."""
        prompt = request.prompt_ids
        if len(prompt) >= self.context:
            raise UsageError(
                f"the prompt has {len(prompt)} tokens and leaves no room in the context of {self.context}",
                hint="shorten the prompt",
            )
        if not (min(prompt) >= 0 and max(prompt) < self.model.vocab_size):
            raise UsageError(
                f"the prompt holds a token id outside 0..{self.model.vocab_size - 1}", hint="use the model's tokenizer"
            )
        self._check_ids(request)
        room = self.context - len(prompt)
        handle = Handle(request, deliver)
        sequence = SequenceState(
            request,
            request.ends(self._tokenizer),
            room if request.max_tokens is None else min(request.max_tokens, room),
            self._detokenizer(request),
            deliver or handle._events.put,  # noqa: SLF001
            self._matcher(request),
            whole=whole,
        )
        handle._sequence = sequence  # noqa: SLF001 (the two are one thing seen from two threads)
        return handle, sequence

    def _matcher(self, request: Request) -> Matcher | None:
        return None if request.constraint is None else self._forms.matcher(request.constraint)

    @cached_property
    def _forms(self) -> Forms:
        return Forms(self.tokenizer)

    def _check_ids(self, request: Request) -> None:
        vocab = self.model.vocab_size
        strange = next((index for index in request.named_ids if not 0 <= index < vocab), None)
        if strange is not None:
            raise UsageError(f"token id {strange} is outside 0..{vocab - 1}", hint="use the model's tokenizer")
        if len(set(request.banned_ids)) == vocab:
            raise UsageError("banned_ids holds every id, so nothing can be generated", hint="ban fewer")

    def _detokenizer(self, request: Request) -> Detokenizer:
        if self._tokenizer is None:
            return Detokenizer(lambda _: b"", request.stop)
        return Detokenizer(self._tokenizer.spelled(request.spelled_ids), request.stop)

    def _enqueue(self, *work: SequenceState | ScoreJob) -> None:
        with self._wake:
            if self._ended is not None:
                raise EngineClosedError("the engine takes no more requests") from self._ended
            self._arrived.extend(work)
            self._wake.notify()

    @torch.inference_mode()
    def _run(self) -> None:
        """The engine's thread: a step of generation and a batch of scoring in turn, until closed."""
        torch.set_num_threads(self._threads)
        try:
            while self._take():
                if self._scheduler.busy:
                    self._scheduler.step()
                if self._scoring and self._scoring[0].step(self.model):
                    self._scoring.popleft()
        except BaseException as error:  # noqa: BLE001 (it is raised again in every thread that waits)
            self._ended = error
        self._tell_everyone()

    def _take(self) -> bool:
        """Sort in what arrived, waiting for it if there is nothing else to do; False when closed."""
        with self._wake:
            while not (self._ended or self._arrived or self._scheduler.busy or self._scoring):
                self._wake.wait()
            while self._arrived:
                work = self._arrived.popleft()
                if isinstance(work, SequenceState):
                    self._scheduler.waiting.append(work)
                else:
                    self._scoring.append(work)
            return self._ended is None

    def _tell_everyone(self) -> None:
        """Pass the end on to every handle and every score that is not done."""
        with self._wake:
            error = self._ended or EngineClosedError("the engine is closed")
            work = [*self._scheduler.running, *self._scheduler.waiting, *self._scoring, *self._arrived]
            self._arrived.clear()
        for item in work:
            if isinstance(item, SequenceState):
                if not item.done:
                    item.deliver(error)
            elif not item.future.done():
                item.future.set_exception(error)
