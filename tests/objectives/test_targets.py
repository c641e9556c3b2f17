"""What is predicted of a text, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.config.errors import InputError
from llmctl.objectives.targets import SHOWN_CHARS, inspected, refuse_overlong, shown, targets
from llmctl.tokens.batch import IGNORE
from llmctl.tokens.tokenizer import Tokenizer


@given(st.lists(st.tuples(st.integers(10, 99), st.booleans()), min_size=1, max_size=20))
def test_each_learned_token_is_the_label_of_the_place_before(checkpoint, body):
    tokenizer = Tokenizer.open(checkpoint.data)
    stop = int(next(iter(tokenizer.stop_ids)))
    pieces = [*body, (stop, True)]
    ids, labels = targets([i for i, _ in pieces], [learned for _, learned in pieces], tokenizer, "here", [])
    assert ids.tolist() == [i for i, _ in pieces]
    assert labels[-1] == IGNORE
    assert labels[:-1].tolist() == [i if learned else IGNORE for i, learned in pieces[1:]]


def test_what_teaches_nothing_is_refused(checkpoint):
    tokenizer = Tokenizer.open(checkpoint.data)
    with pytest.raises(InputError, match="here has no token to learn: 'hello'"):
        targets([11, 12], [False, False], tokenizer, "here", "hello")
    with pytest.raises(InputError, match="here never teaches the model to stop"):
        targets([11, 12], [False, True], tokenizer, "here", "hello")


def test_long_rows_are_cut_where_they_are_shown():
    assert shown("a") == "'a'"
    assert len(shown("a" * 999)) == SHOWN_CHARS + 1


def test_what_does_not_fit_is_refused_or_dropped():
    refuse_overlong(["x has 9 tokens"], "drop", 8)
    refuse_overlong([], "error", 8)
    with pytest.raises(InputError, match="x has 9 tokens, more than 8; 2 in all"):
        refuse_overlong(["x has 9 tokens", "y"], "error", 8)


def test_a_text_is_shown_token_by_token(checkpoint):
    tokenizer = Tokenizer.open(checkpoint.data)
    stop = tokenizer.special["<|im_end|>"]
    word = tokenizer.encode("the")[0]
    ids, labels = targets([word, word, stop], [False, True, True], tokenizer, "here", [])
    head, columns, *lines = inspected("chat 1", ids, labels, tokenizer)
    assert head == "chat 1: 3 tokens, 2 learned, of which 1 end a turn"
    assert columns.split() == ["place", "id", "learned", "token"]
    text = repr(tokenizer.piece_bytes(word).decode())
    assert lines[0].split() == ["0", str(word), "-", text]
    assert lines[1].split() == ["1", str(word), "yes", text]
    assert lines[2].split() == ["2", str(stop), "yes", repr("<|im_end|>"), "ends", "a", "turn"]
