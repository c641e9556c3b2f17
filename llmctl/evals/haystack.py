"""A needle in a haystack: one sentence hidden in a long text, at each of several lengths and depths."""

from __future__ import annotations

import random
from collections.abc import Sequence

from llmctl.config.errors import InputError, UsageError
from llmctl.config.tasks import HaystackConfig
from llmctl.evals.items import Row
from llmctl.evals.templates import Field
from llmctl.tokens.tokenizer import Tokenizer

CITIES = (
    *("Ankara", "Bergen", "Cusco", "Dakar", "Essen", "Fargo", "Genoa", "Hanoi", "Izmir", "Jaipur", "Kyoto", "Lagos"),
    *("Nairobi", "Osaka", "Perth", "Quito", "Riga", "Salta", "Turin", "Utrecht", "Varna", "Warsaw", "York", "Zagreb"),
)


def haystack_rows(config: HaystackConfig, rows: Sequence[Row], tokenizer: Tokenizer | None, *, seed: int) -> list[Row]:
    """Items with the fields `haystack`, `needle`, `city`, `number`, `length`, `depth`.

    Args:
        config: lengths, depths and the sentence.
        rows: rows with a field `text`, whose paragraphs are the hay, in order.
        tokenizer: counts the length.
        seed: of the numbers and cities.

    Raises:
        InputError: there is not text enough.
        UsageError: the tokenizer is not known.
    """
    if tokenizer is None:
        raise UsageError("the length of a haystack is in tokens, the server's tokenizer is not known", hint="give REF")
    hay = [part for row in rows for part in str(row.doc.get("text", "")).split("\n") if part.strip()]
    lengths = [len(tokenizer.encode(part + "\n")) for part in hay]
    needle = Field("needle", config.needle, "haystack")
    chance = random.Random(seed)  # noqa: S311 - names and numbers of a test
    made: list[Row] = []
    for length in config.lengths_tokens:
        for depth in config.depths:
            for _ in range(config.repeats):
                secret = {"city": chance.choice(CITIES), "number": str(chance.randrange(1_000_000, 10_000_000))}
                said = needle.text(secret, "haystack")
                text = _hidden(hay, lengths, length - len(tokenizer.encode(said + "\n")), said, depth)
                where = f"haystack {length}@{depth:g}"
                doc = {**secret, "needle": said, "haystack": text, "length": length, "depth": depth}
                made.append(Row(len(made), where, {"id": f"{length}@{depth:g}#{len(made)}", **doc}))
    return made


def _hidden(hay: Sequence[str], lengths: Sequence[int], room: int, said: str, depth: float) -> str:
    """Paragraphs of at most `room` tokens with the sentence between them."""
    taken, used = 0, 0
    while taken < len(hay) and used + lengths[taken] <= room:
        used += lengths[taken]
        taken += 1
    if taken == len(hay):
        raise InputError(f"the haystack has {used} tokens, {room} are wanted", hint="give a longer text")
    place = round(depth * taken)
    return "\n".join([*hay[:place], said, *hay[place:taken]])
