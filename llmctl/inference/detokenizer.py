"""From a growing list of tokens to text that is final: whole characters, and no stop string in sight."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence


class Detokenizer:
    """The text of one answer, token by token.

    Bytes of an incomplete character, and text that may turn out to begin a stop string, are held back. Whatever the
    cut into tokens, the texts returned, joined, are the same: the bytes decoded as UTF-8 (U+FFFD for what is none) up
    to the stop string that is complete first, of several the longest.

    Args:
        piece_bytes: the bytes of a token id.
        stop: strings that end the answer.
    """

    def __init__(self, piece_bytes: Callable[[int], bytes], stop: Sequence[str] = ()) -> None:
        self._piece_bytes = piece_bytes
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def add(self, *tokens: int, stops: bool = True) -> tuple[str, bool]:
        """Take tokens; return the text that became final, and whether a stop string ended the answer.

        Args:
            tokens: their ids.
            stops: whether stop strings count yet; one that is complete or begun before does not end the answer.
        """
        new = self._decoder.decode(b"".join(map(self._piece_bytes, tokens)))
        return self._release(new) if stops and self._stop else (new, False)

    def finish(self) -> tuple[str, bool]:
        """No token follows: return the rest, up to a stop string that an incomplete character hid."""
        text, stopped = self._release(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return (text, True) if stopped else (text + rest, False)

    def _release(self, new: str) -> tuple[str, bool]:
        text = self._held + new
        found = [(text.find(stop), stop) for stop in self._stop if stop in text]
        if found:
            start, _ = min(found, key=lambda hit: (hit[0] + len(hit[1]), hit[0]))
            self._held = ""
            return text[:start], True
        kept = self._possible_stop(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept], False

    def _possible_stop(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stop):
                return length
        return 0
