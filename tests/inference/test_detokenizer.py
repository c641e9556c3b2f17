"""The stream of texts, joined, is the whole text, however it was cut into tokens."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from llmctl.inference.detokenizer import Detokenizer


def run(pieces: Sequence[bytes], stop: Sequence[str] = ()) -> tuple[list[str], bool]:
    detokenizer = Detokenizer(lambda index: pieces[index], stop)
    texts = []
    for index in range(len(pieces)):
        text, stopped = detokenizer.add(index)
        texts.append(text)
        if stopped:
            return texts, True
    text, stopped = detokenizer.finish()
    return [*texts, text], stopped


def expected(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The definition: go character by character until some stop string is complete; take the longest of those."""
    for end in range(1, len(text) + 1):
        done = [s for s in stop if text[:end].endswith(s)]
        if done:
            return text[: end - max(map(len, done))], True
    return text, False


def test_incomplete_characters_are_held_back() -> None:
    assert run([b"a\xe2", b"\x82", b"\xac!"]) == (["a", "", "\u20ac!", ""], False)
    assert run([b"x", b"\xf0\x9f"]) == (["x", "", "\ufffd"], False)
    assert run([b"\xff", b"y"]) == (["\ufffd", "y", ""], False)


def test_possible_stop_strings_are_held_back_and_given_out_if_they_are_none() -> None:
    assert run([b"Hi", b" EN", b"D", b" of"], [" END"]) == (["Hi", "", ""], True)
    assert run([b"Hi", b" EN", b"T", b"RY"], [" END"]) == (["Hi", "", " ENT", "RY", ""], False)
    assert run([b"Hi", b" EN"], [" END"]) == (["Hi", "", " EN"], False)


def test_the_first_complete_stop_string_ends_the_text() -> None:
    assert run([b"one two three"], ["three", "two"]) == (["one "], True)
    assert run([b"abcd"], ["bc", "abc"]) == ([""], True)
    assert run([b"aab", b"aac"], ["aac"]) == (["aab", ""], True)


@given(st.lists(st.binary(max_size=5), max_size=12))
def test_the_stream_is_the_whole_text(pieces: list[bytes]) -> None:
    texts, stopped = run(pieces)
    assert not stopped
    assert "".join(texts) == b"".join(pieces).decode("utf-8", "replace")


@given(
    st.text("ab\u20ac", max_size=24),
    st.lists(st.text("ab\u20ac", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 4), min_size=1, max_size=8),
)
def test_stop_strings_do_not_depend_on_the_cut(text: str, stop: list[str], sizes: list[int]) -> None:
    content = text.encode()
    pieces, start = [], 0
    while start < len(content):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(content[start : start + size])
        start += size
    texts, stopped = run(pieces, stop)
    assert ("".join(texts), stopped) == expected(text, stop)
