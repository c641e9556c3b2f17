"""Blocks are handed out once, come back, and are found again by what they hold."""

from hypothesis import given
from hypothesis import strategies as st

from llmctl.inference.blocks import BlockPool, block_hash, root_hash


def names(*blocks: list[int], salt: str = "") -> list[bytes]:
    chain = [root_hash(salt)]
    for tokens in blocks:
        chain.append(block_hash(chain[-1], tokens))
    return chain[1:]


def test_a_hash_says_everything_in_front_of_it() -> None:
    assert names([1, 2], [3, 4])[1] != names([2, 1], [3, 4])[1]
    assert names([1, 2], [3, 4])[1] == names([1, 2], [3, 4])[1]
    assert names([1, 2])[0] != names([1, 2], salt="a")[0]
    assert names([1, 23])[0] != names([12, 3])[0]


def test_released_blocks_are_found_until_they_are_taken() -> None:
    pool = BlockPool(4, 2)
    first, second = names([1, 2], [3, 4])
    blocks = pool.take(2)
    assert blocks is not None
    pool.register(blocks[0], first)
    pool.register(blocks[1], second)
    pool.release(blocks)
    assert pool.unused == 4
    assert pool.cached([first, second]) == blocks
    assert pool.cached([first, b"other"]) == blocks[:1]
    taken = pool.take(3)  # two that hold nothing, and the end of the prefix before its beginning
    assert taken is not None
    assert set(taken) == {0, 1, 2, 3} - {blocks[0]}
    assert pool.cached([first, second]) == blocks[:1]
    assert pool.take(2) is None
    assert pool.unused == 1


def test_a_shared_block_is_free_when_its_last_user_leaves() -> None:
    pool = BlockPool(2, 2)
    (name,) = names([1, 2])
    blocks = pool.take(1)
    assert blocks is not None
    pool.register(blocks[0], name)
    pool.share(blocks)
    pool.release(blocks)
    assert pool.unused == 1
    pool.release(blocks)
    assert pool.unused == 2
    pool.share(blocks)
    assert pool.unused == 1


def test_the_block_behind_is_preferred() -> None:
    pool = BlockPool(6, 2)
    assert pool.take(1) == [0]
    assert pool.take(1) == [1]
    assert pool.take(2, after=1) == [2, 3]
    pool.release([1])
    assert pool.take(1, after=0) == [1]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=60))
def test_no_block_has_two_takers(actions: list[tuple[bool, int]]) -> None:
    pool = BlockPool(8, 2)
    held: list[list[int]] = []
    for number, (takes, count) in enumerate(actions):
        if takes:
            blocks = pool.take(count)
            assert (blocks is None) == (count > 8 - sum(map(len, held)))
            if blocks:
                pool.register(blocks[0], bytes([number]))
                held.append(blocks)
        elif held:
            pool.release(held.pop(count % len(held)))
        flat = [block for blocks in held for block in blocks]
        assert len(flat) == len(set(flat)) == 8 - pool.unused
