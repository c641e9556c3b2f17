"""Which block of the KV cache belongs to whom, and which still hold a prefix that comes again.

A block holds keys and values of `size` consecutive tokens of one sequence. Sequences that begin alike share the blocks
of their common beginning (PagedAttention, arXiv:2309.06180, section 4.4). A full block is known by a hash of its tokens
and of all before them, so one look-up finds the longest prefix that is still there.
"""

from __future__ import annotations

import array
import hashlib
from collections import OrderedDict
from collections.abc import Sequence

HASH_BYTES = 32  # of BLAKE2b: a collision would show one client another's text


def root_hash(salt: str) -> bytes:
    """What the first block's hash is chained to; sequences with different salts share nothing."""
    return hashlib.blake2b(salt.encode(), digest_size=HASH_BYTES).digest()


def block_hash(before: bytes, tokens: Sequence[int]) -> bytes:
    """Hash of a full block: of its tokens and, by `before`, of everything in front of it."""
    content = before + array.array("q", tokens).tobytes()
    return hashlib.blake2b(content, digest_size=HASH_BYTES).digest()


class BlockPool:
    """The blocks of one cache. One thread at a time may use it.

    A block that nobody uses keeps its hash, and what it holds, until it is handed out again; the one unused for longest
    goes first.

    Args:
        count: how many blocks there are.
        size: tokens of one block.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.size = size
        self._users = [0] * count
        self._hash_of: list[bytes | None] = [None] * count
        self._block_of: dict[bytes, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict.fromkeys(range(count))

    @property
    def unused(self) -> int:
        """Blocks that can be handed out, those with an old prefix among them."""
        return len(self._unused)

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold so many tokens."""
        return -(-tokens // self.size)

    def cached(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks of the longest known prefix of `hashes`."""
        found: list[int] = []
        for name in hashes:
            block = self._block_of.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def share(self, blocks: Sequence[int]) -> None:
        """Add one user to each block."""
        for block in blocks:
            if self._users[block] == 0:
                del self._unused[block]
            self._users[block] += 1

    def take(self, count: int, after: int | None = None) -> list[int] | None:
        """Blocks for one user, whose content is undefined; None, and nothing happens, where there are not enough.

        Args:
            count: how many.
            after: the user's last block. The one behind it is preferred, as consecutive blocks are read in place.
        """
        if count > len(self._unused):
            return None
        taken: list[int] = []
        for _ in range(count):
            after = self._next(after)
            del self._unused[after]
            self._forget(after)
            self._users[after] = 1
            taken.append(after)
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """Take one user from each block of a sequence; the ends of prefixes are the first to be handed out again."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block] == 0:
                self._unused[block] = None
                if self._hash_of[block] is None:
                    self._unused.move_to_end(block, last=False)

    def register(self, block: int, name: bytes) -> None:
        """Say that a full block holds the prefix of this hash. Where another holds it already, that one stays known."""
        if name not in self._block_of:
            self._forget(block)
            self._block_of[name] = block
            self._hash_of[block] = name

    def _next(self, after: int | None) -> int:
        behind = -1 if after is None else after + 1
        if behind in self._unused and self._hash_of[behind] is None:
            return behind
        return next(iter(self._unused))

    def _forget(self, block: int) -> None:
        name = self._hash_of[block]
        if name is not None:
            del self._block_of[name]
            self._hash_of[block] = None
