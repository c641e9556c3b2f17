"""No string takes a text step more than linear time (ReDoS): the steps of `clean`, and its neighbours."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llmctl.config.clean import CleanConfig
from llmctl.data.clean import chain
from llmctl.data.clean.rules import Document, MeasuredRules, Rules
from llmctl.data.clean.words import Vocabulary
from llmctl.data.collect.wikitext import plain_text
from llmctl.data.lessons.documentation import summary_sentences
from llmctl.data.split import split_mark

LENGTH = 10_000
MOST_SECONDS = 1.0  # of CPU time a string: a bound that stops what is far from linear; bench/hostile.py measures
UNITS = (
    "a A _ @ . - 1 [ ] ( < > & ; = * # : / ? é Ã© あ ' ~ ` | [[ {{ {| [[a| '' :// a@ a. a@a. a.a@ 1- 1. 1: (1 0: a- <a "
    "<!-- </ &# &#x [//a __A e.g. foo(a) eyJ sk- \\x41 \\u0041 0x41, DE00 ~1 [edit .html a… -----BEGIN"
).split()
SPACED = [
    "-----BEGIN PRIVATE KEY-----",
    " ",
    "\t",
    "\n",
    " \n",
    "\r",
    "\x1b[",
    "\x1b[0",
    "\0",
    "1 ",
    "+1 ",
    "tel: 0",
    "A. A ",
    "= a\n",
    "12 34 ",
    "<a ",
    "41 ",
]
STRINGS = [*UNITS, *SPACED]


def switched_on() -> dict[str, Any]:
    """Every step that has a switch `enabled` on, by the fields of the configuration."""
    on: dict[str, Any] = {}
    for name, field in CleanConfig.model_fields.items():
        fields = getattr(field.annotation, "model_fields", {})
        if "enabled" in fields:
            on[name] = {"enabled": True}
    return on


def steps(directory: Path) -> dict[str, Callable[[pa.RecordBatch], object]]:
    """The kernels of `clean` with everything on that needs no trained model; rules one set at a time."""
    lists = {}
    for role in ("blocklist", "allowlist", "hardwords", "softwords"):
        lists[role] = directory / role
        lists[role].write_text("a a b\n*bb*\nexample.com/a\nあ\n", encoding="utf-8")
    np.save(directory / "keys.npy", np.zeros(1, np.uint64))
    made: dict[str, Callable[[pa.RecordBatch], object]] = {}
    open_c4 = {"enabled": True, "terminal_punctuation": False, "max_word_length": None, "min_line_words": None,
               "drop_curly_brackets": False, "min_sentences": 10**9}  # fmt: skip
    for number, chosen in enumerate(
        (
            {"html": "always", "pii": {"action": "redact"}, "segment": {"by": "section"}},
            {"html": "always", "main_content": True, "pii": {"action": "tag"}, "segment": {"by": "paragraph"}},
            {"html": "auto", "c4": open_c4, "pii": {"action": "drop"}},
        )
    ):
        config = CleanConfig(**(switched_on() | {"language": {"identify": True}} | chosen))
        setting = chain.Setting(config, lists, boilerplate=directory / "keys.npy")
        for stretch in chain.STRETCHES:
            for _, kernel in setting.kernels(stretch):
                if isinstance(kernel, Rules):
                    for rules in (*kernel.prose, *kernel.code):
                        made[f"{type(rules).__name__} {number}"] = measured(rules)
                else:
                    made[f"{type(kernel).__name__} {number}"] = kernel
    return made


def measured(rules: Any) -> Callable[[pa.RecordBatch], object]:
    """All measures of a set of rules, whichever the first to drop would be."""

    def run(batch: pa.RecordBatch) -> object:
        document = Document(batch.column("text")[0].as_py(), Vocabulary())
        return list(rules.measures(document)) if isinstance(rules, MeasuredRules) else rules.apply(document)

    return run


def batch_of(text: str) -> pa.RecordBatch:
    row = {"id": text, "text": text, "url": f"http://{text}", "source": "s", "license": "", "lang": ""}
    return pa.RecordBatch.from_pylist([row])


def cpu_seconds(step: Callable[[Any], object], argument: Any) -> float:
    begun = time.process_time()
    step(argument)
    return time.process_time() - begun


def test_no_step_of_clean_is_slow_on_any_string(tmp_path: Path) -> None:
    made = steps(tmp_path)
    assert len(made) > 25
    slow = {}
    for name, step in made.items():
        step(batch_of("a"))  # loads what it loads once
        for unit in STRINGS:
            batch = batch_of((unit * LENGTH)[:LENGTH] + "\0!")
            if (seconds := cpu_seconds(step, batch)) > MOST_SECONDS:
                slow[name, unit] = seconds
    assert not slow


READERS: list[Callable[[str], object]] = [plain_text, summary_sentences, split_mark]


@pytest.mark.parametrize("step", READERS)
def test_no_reader_is_slow_on_any_string(step: Callable[[str], object]) -> None:
    seconds = [cpu_seconds(step, (unit * LENGTH)[:LENGTH] + end) for unit in STRINGS for end in ("", "!", "~~1")]
    assert max(seconds) < MOST_SECONDS
