"""How much each client may ask for in a minute, in requests and in tokens."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from llmctl.serve.errors import ApiError, bad_request

MOST_CLIENTS = 10_000  # that are remembered; addresses come without end
ROUNDING = 1e-6


@dataclass
class Bucket:
    """A token bucket: full at first, refilled evenly, a minute's worth at most.

    Attributes:
        per_minute: what flows in, and what it holds.
        level: what is in it at `at`, in seconds of the clock.
    """

    per_minute: int
    level: float
    at: float

    def wait_s(self, amount: int, now: float) -> float:
        """Seconds until `amount` can be taken; 0 where it can be now."""
        self.level = min(float(self.per_minute), self.level + (now - self.at) * self.per_minute / 60)
        self.at = now
        missing = amount - self.level
        return missing * 60 / self.per_minute if missing > ROUNDING else 0.0

    def change(self, amount: int) -> None:
        """Put in, or take out where negative."""
        self.level = min(float(self.per_minute), self.level + amount)


class Quotas:
    """The buckets of all clients. Tokens are taken for the most that a request may cost; what it spared is given back.

    Args:
        requests_per_minute: of one client; None for no limit.
        tokens_per_minute: of prompts and answers of one client; None for no limit.
        clock: in seconds, never backwards.
    """

    def __init__(
        self,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = (requests_per_minute, tokens_per_minute)
        self._clock = clock
        self._clients: OrderedDict[str, tuple[Bucket | None, Bucket | None]] = OrderedDict()

    def take(self, client: str, tokens: int) -> None:
        """Count one request of `client` that may cost `tokens`; both quotas are charged or none.

        Raises:
            ApiError: 429 with Retry-After where a quota is used up; 400 where the request alone exceeds it.
        """
        now, most = self._clock(), self._limits[1]
        if most is not None and tokens > most:
            raise bad_request(
                f"the request may cost {tokens} tokens, more than the {most} a minute that a client has; "
                "lower max_tokens or n",
                code="rate_limit_exceeded",
            )
        pairs = list(zip(self._buckets(client, now), (1, tokens), ("requests", "tokens"), strict=True))
        for bucket, amount, unit in pairs:
            wait_s = bucket.wait_s(amount, now) if bucket else 0.0
            if bucket and wait_s > 0:
                seconds = max(1, math.ceil(wait_s - ROUNDING))
                raise ApiError(
                    429,
                    f"the quota of {bucket.per_minute} {unit} a minute is used up; try again in {seconds} s",
                    kind="rate_limit_error",
                    code="rate_limit_exceeded",
                    headers={"Retry-After": str(seconds)},
                )
        for bucket, amount, _ in pairs:
            if bucket:
                bucket.change(-amount)

    def give_back(self, client: str, tokens: int) -> None:
        """Return what a request was charged for and did not use."""
        _, bucket = self._clients.get(client, (None, None))
        if bucket:
            bucket.change(tokens)

    def _buckets(self, client: str, now: float) -> tuple[Bucket | None, Bucket | None]:
        found = self._clients.get(client)
        if found is None:
            requests, tokens = (None if most is None else Bucket(most, most, now) for most in self._limits)
            found = self._clients[client] = (requests, tokens)
            if len(self._clients) > MOST_CLIENTS:
                self._clients.popitem(last=False)
        self._clients.move_to_end(client)
        return found
