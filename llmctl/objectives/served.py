"""Answers that a server draws, asked in token ids over the OpenAI API, in place of the engine of this process."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llmctl.config.errors import InputError, InterruptedRunError
from llmctl.config.grpo import DrawsConfig
from llmctl.inference.remote import Connection, FailedError, card_of, signed
from llmctl.inference.request import Request
from llmctl.model import huggingface, scoring
from llmctl.model.transformer import Transformer, outline
from llmctl.objectives.rollouts import Drawn
from llmctl.tokens.tokenizer import Tokenizer
from llmctl.train.strategy import T

NEEDED = "llmctl serve and vLLM have return_token_ids and logprobs"
PUSHED = "start vLLM with VLLM_SERVER_DEV_MODE=1, or leave out server.push_to"


class LostError(Exception):
    """The server stopped answering, and why; what it has said is kept."""


class Server:
    """A server of the policy's checkpoint.

    Args:
        config: its address and bounds.
        tokenizer: the policy's, whose ids it must read.
        checkpoint: the policy's folder, whose tokenizer files go with weights that are pushed.

    Attributes:
        follows: whether weights are pushed, so that it draws by the newest ones.

    Raises:
        InputError: it cannot be reached, or has no such model.
    """

    def __init__(self, config: DrawsConfig, tokenizer: Tokenizer, checkpoint: Path) -> None:
        self._name = str(card_of(config)["id"])
        self._url, self._connection, self._tokenizer = config.url, Connection.of(config), tokenizer
        root = config.url.rstrip("/").removesuffix("/v1")
        self._root = Connection.of(config.model_copy(update={"url": root}))
        self._folder, self._checkpoint = Path(config.push_to).absolute(), checkpoint
        self.follows = bool(config.push_to)

    def push(self, model: Transformer) -> None:
        """Write the weights to the folder, let vLLM load them, and forget what it had computed by others.

        Raises:
            InputError: the server knows no such thing.
            LostError: it does not answer, or has not done it.
        """
        weights = {name: one for name, one in model.state_dict().items() if name != scoring.WEIGHT}
        bare = outline(model.config, model.vocab_size)
        bare.load_state_dict(weights, assign=True)
        huggingface.save(bare, self._folder, self._checkpoint)
        load = {"method": "reload_weights", "kwargs": {"weights_path": str(self._folder)}}
        try:
            self._root.ask("/collective_rpc", load)
            forgotten = self._root.ask("/reset_prefix_cache", {})
        except FailedError as error:
            if error.refuses:
                raise InputError(f"{self._url} takes no weights: {error}", hint=PUSHED) from None
            raise LostError(f"{self._url} does not take the weights: {error}") from None
        if not forgotten.get("success"):
            raise LostError(f"{self._url} still has prefixes of the weights before: is it asked by others too?")

    def close(self) -> None:
        """Leave it."""
        self._connection.close()
        self._root.close()

    def drawn(self, requests: Sequence[Request], at_once: int) -> list[Drawn]:
        """What it says to each request, in their order.

        Raises:
            InputError: it refuses to answer, or does not say ids and log-probabilities.
            LostError: it does not answer.
        """
        with ThreadPoolExecutor(max(1, min(at_once, len(requests)))) as threads:
            return list(threads.map(self._asked, requests))  # where one raises, no further one is asked

    def _asked(self, request: Request) -> Drawn:
        try:
            choice = self._connection.ask("/completions", self._body(request))["choices"][0]
        except FailedError as error:
            if error.refuses:
                raise InputError(f"{self._url} refuses to draw: {error}", hint=NEEDED) from None
            raise LostError(f"{self._url} does not answer: {error}") from None
        except (KeyError, IndexError, TypeError) as error:
            raise InputError(f"{self._url} gives no choice: {type(error).__name__}: {error}", hint=NEEDED) from None
        return self._read(choice, request.spelled_ids)

    def _body(self, request: Request) -> dict[str, Any]:
        assert request.seed is not None, "each answer has its own"
        body = {
            "model": self._name,
            "prompt": list(request.prompt_ids),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": signed(request.seed),
            "stop_token_ids": sorted(request.ends(self._tokenizer)),
            "logprobs": 0,
            "return_token_ids": True,
        }
        # At 1 what is drawn from is the model's own distribution; elsewhere vLLM knows --logprobs-mode alone.
        return body if request.temperature == 1 else {**body, "logprobs_mode": "sampled"}

    def _read(self, choice: Any, spelled_ids: Sequence[int]) -> Drawn:
        """What a choice says; marks of calls that are special ids are part of its text.

        Raises:
            InputError: something is missing, or does not fit together.
        """
        try:
            ids = [int(one) for one in choice["token_ids"]]
            logps = [float(one) for one in choice["logprobs"]["token_logprobs"]]
            reason = choice["finish_reason"]
        except (KeyError, TypeError, ValueError):
            lacking = "token ids" if not (isinstance(choice, dict) and choice.get("token_ids")) else "log-probabilities"
            raise InputError(f"{self._url} says no {lacking} of what it draws", hint=NEEDED) from None
        ended = bool(ids) and ids[-1] in self._tokenizer.stop_ids
        within = bool(ids) and min(ids) >= 0 and max(ids) < self._tokenizer.vocab_size
        if not within or len(ids) != len(logps) or (reason == "stop") != ended:
            raise InputError(
                f"{self._url}: an answer of {len(ids)} ids and {len(logps)} log-probabilities that ended by {reason!r}",
                hint="ids must be the policy's, the one that ends an answer among them",
            )
        said = ids[:-1] if ended else ids
        text = self._tokenizer.decode(said)
        if set(spelled_ids) & set(said):
            text = b"".join(map(self._tokenizer.spelled(spelled_ids), said)).decode(errors="replace")
        return Drawn(np.array(ids, dtype=np.int64), np.array(logps, dtype=np.float64), text, not ended)


class Meeting(Protocol):
    """This rank among those that make a rollout."""

    @property
    def rank(self) -> int:
        """Its number."""

    @property
    def world_size(self) -> int:
        """How many there are."""

    def gather(self, value: T) -> list[T]:
        """What every rank gave, in their order; collective."""


def follow(server: Server | None, model: Transformer, ranks: Meeting) -> None:
    """Give the server the weights that are to draw, where it takes them; collective.

    Raises:
        InterruptedRunError: it is gone.
    """
    if server is None or not server.follows:
        return
    lost = ""
    if ranks.rank == 0:
        try:
            server.push(model)
        except LostError as error:
            lost = str(error)
    require_server(ranks.gather(lost))


def require_server(lost: Sequence[str]) -> None:
    """End the run where the server is gone for any rank.

    Raises:
        InterruptedRunError: it is.
    """
    if gone := next(filter(None, lost), None):
        raise InterruptedRunError(gone, hint="the same command resumes once it does")
