from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.split import is_heldout, position, split_mark


def test_known_ids_never_move() -> None:
    # xxh64 of these ids over 2^64; a change here would leak held-out documents into training.
    assert [is_heldout(f"python-docs/{n}", 0.5) for n in ("len", "os.path.join", "json.loads", "re.compile")] == [
        True,
        False,
        True,
        True,
    ]


def test_a_known_position() -> None:
    # The published test value of XXH64 for the empty input: ef46db3751d8e999.
    assert position("") == 0xEF46DB3751D8E999 / 2**64


@given(st.text(st.characters(exclude_categories=["Cs"])), st.floats(0, 1))
def test_heldout_is_below_the_fraction(document_id: str, fraction: float) -> None:
    assert 0 <= position(document_id) < 1
    assert is_heldout(document_id, fraction) == (position(document_id) < fraction)


def test_share_is_the_fraction() -> None:
    ids = [f"document-{n}" for n in range(20_000)]
    assert abs(sum(is_heldout(i, 0.05) for i in ids) / 20_000 - 0.05) < 0.005


def test_heldout_sets_are_nested() -> None:
    ids = [f"d{n}" for n in range(2_000)]
    assert all(is_heldout(i, 0.1) for i in ids if is_heldout(i, 0.05))


def test_the_ends() -> None:
    assert not is_heldout("x", 0.0)
    assert is_heldout("x", 1.0)


def test_a_repeated_document_is_where_the_first_is() -> None:
    assert position("a~2") == position("a~2~13") == position("a")
    assert position("a~b") != position("a")
    assert split_mark("a~7") == ("a", 7)
    assert split_mark("a~2~13") == ("a", 13)
    assert split_mark("a~") == ("a~", 1)
    assert split_mark("~2") == ("~2", 1), "an id is never empty"


@given(st.text(max_size=5), st.integers(2, 10**9 - 1))
def test_a_mark_is_read_back(name: str, number: int) -> None:
    assert split_mark(f"x{name}~{number}")[1] == number
