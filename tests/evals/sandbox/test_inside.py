"""The parts that run inside, on their own: the form of values on the wire and the names that tests use."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.evals.sandbox.inside import checker, seccomp, wire

ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.decimals(allow_nan=False),
    st.fractions(),
    st.datetimes(),
    st.timedeltas(),
    st.complex_numbers(allow_nan=False),
)
HASHABLE = st.recursive(ATOMS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=6)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(HASHABLE, inner, max_size=3) | st.tuples(inner),
    max_leaves=12,
)


def through_a_pipe(message: Any) -> Any:
    reader, writer = os.pipe()
    try:
        wire.write_frame(writer, message)
        return wire.read_frame(reader)
    finally:
        os.close(reader)
        os.close(writer)


@settings(max_examples=60)
@given(VALUES)
def test_values_survive_the_wire(value: Any) -> None:
    back = wire.decode(through_a_pipe(wire.encode(value)))
    assert repr(back) == repr(value) or back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"a": 1, "b": 2},
        {"os": "system"},
        {"object": 1},
        {"dict": 3},
        {"dict": [[[], 1]]},
        {"set": [[1]]},
        {"int": "zz"},
        {"bytes": "0"},
        {"range": [1, 2, 0]},
        {"Decimal": "x"},
        {"Fraction": "1/0"},
        {"complex": ["x"]},
        [{"datetime": 5}],
    ],
)
def test_what_no_encoder_writes_is_refused(said: Any) -> None:
    with pytest.raises(wire.NotDataError):
        wire.decode(said)


def test_frames_are_bounded_whole_and_json() -> None:
    with pytest.raises(wire.NotDataError, match="bytes at once"):
        through_a_pipe("x" * (wire.FRAME_BYTES + 1))
    for sent, error in (
        (b"\xff\xff\xff\xff", wire.NotDataError),
        (b"\x02\0\0\0{]", wire.NotDataError),
        (b"\x02\0\0\0{", EOFError),
        (b"\x02\0", EOFError),
    ):
        reader, writer = os.pipe()
        os.write(writer, sent)
        os.close(writer)
        with pytest.raises(error):
            wire.read_frame(reader)
        os.close(reader)


def test_free_names_of_tests() -> None:
    code = (
        "import os.path, json as j\nfrom math import isclose as near\n"
        "def check(candidate, *rest, key=None):\n    total = sum(x for x in rest)\n    return g(total, key)\n"
        "class T(Base): pass\n"
        "try: check(f, j, near, os)\nexcept ValueError as error: print(error)\n"
        "with h() as held: held.close()\n"
        "match f:\n    case [a, *b]: print(a, b)\n    case {'k': c, **d}: print(c, d)\n    case e: print(e)\n"
        "[y := 1 for _ in ()]\nprint(y, lambda z: z)"
    )
    assert checker.free_names(ast.parse(code)) == {"f", "g", "h", "Base"}


HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


@pytest.mark.parametrize("machine", HEADERS)
def test_the_filters_numbers_are_the_kernels(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip(f"no {HEADERS[machine]}")
    text = HEADERS[machine].read_text(encoding="utf-8")
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    _, refused, clone, forks = seccomp._MACHINES[machine]
    ours = {**refused, **seccomp._COMMON}
    assert {name: known.get(name) for name in ours} == ours
    assert clone == known["clone"]
    assert list(forks) == [known[name] for name in ("fork", "vfork") if name in known]
