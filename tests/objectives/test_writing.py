"""What is written beside: in order, and nothing that goes wrong is lost."""

import threading

import pytest

from llmctl.objectives.writing import Writing


def test_what_is_begun_is_written_in_order_while_the_caller_goes_on():
    written, go_on = [], threading.Event()

    def slowly():
        go_on.wait(60)
        written.append("first")

    writing = Writing()
    writing.begin(slowly)
    assert written == []
    go_on.set()
    writing.begin(lambda: written.append("second"))
    assert written[:1] == ["first"]
    writing.require()
    assert written == ["first", "second"]
    writing.close()


@pytest.mark.parametrize("then", ["begin", "require", "close"])
def test_a_failure_is_raised_once_by_what_is_called_next(then):
    def full():
        raise OSError("no space left")

    writing = Writing()
    writing.begin(full)
    with pytest.raises(OSError, match="no space left"):
        writing.begin(lambda: None) if then == "begin" else getattr(writing, then)()
    writing.close()
