"""Every document is accounted for: in the totals, in the funnel, in the rejected tables; and `show --rejected`."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmctl.config.clean import CleanConfig
from llmctl.config.errors import InputError
from llmctl.data.clean import run
from llmctl.data.funnel import excerpt, read_funnel, rejected_examples
from llmctl.store.artifact import FileInput
from tests.data.conftest import rows_of

GOOD = (
    "The small bakery at the corner opens before sunrise. By the time that first commuters walk past, smells of fresh "
    "bread have filled our street, and its owner greets everyone by name while she wraps warm rolls in brown paper. "
    "Children stop on their way to school, press noses against glass, and think for a long time about what to buy."
)
TEXTS = [
    GOOD,
    GOOD + "\n\n" + GOOD.upper() + " mail a@b.org",
    "short text",
    "",
    "\x00\n",
    "short a@b.org",
    "Das ist ein deutscher Satz über das Wetter und den Regen, der heute gefallen ist. " * 3,
    "<html><body><p>" + GOOD,
    "# Head\n\n" + GOOD + "\n\nshort\n",
    "bad word " + GOOD,
    "x " * 200,
    "\ud7ff\u202e" + GOOD,
]
CONFIGS = [
    CleanConfig(keep_rejected=True),
    CleanConfig(
        keep_rejected=True,
        language={"keep": "en"},
        pii={"action": "drop"},
        segment={"by": "paragraph", "min_characters": 20},
    ),
    CleanConfig(
        keep_rejected=True,
        boilerplate={"enabled": True, "by": "source", "min_documents": 2},
        language={"identify": True},
        segment={"by": "section", "max_characters": 400},
        pii={"action": "redact"},
        quality={"min_words": 3},
    ),
    CleanConfig(
        keep_rejected=True,
        pii={"action": "tag"},
        repetition={"enabled": False},
        quality={"enabled": False},
        segment={"max_characters": 400},
    ),
]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(TEXTS), st.sampled_from(["", "http://bad.org/", "http://x.org/"])),
        min_size=1,
        max_size=15,
    ),
    st.sampled_from(CONFIGS),
)
def test_in_is_kept_and_dropped(
    documents: Callable, stage: Callable, tmp_path: Path, rows: list[tuple[str, str]], config: CleanConfig
) -> None:
    roles = {}
    for role, text in (("blocklist", "bad.org"), ("hardwords", "bad word")):
        (tmp_path / role).write_text(text)
        roles[role] = FileInput.of(tmp_path / role, "list")
    table = [
        {"id": "kept", "text": GOOD, "source": "only"},
        *({"id": str(n), "text": text, "url": url} for n, (text, url) in enumerate(rows)),
    ]
    product, artifact = stage(run, config, documents(table), **roles)
    totals = product.totals
    dropped = {key.removeprefix("dropped."): n for key, n in totals.items() if key.startswith("dropped.")}
    assert totals["in"] == len(table)
    assert totals.get("segments", totals["in"]) == totals["kept"] + sum(dropped.values())
    assert totals["kept"] == totals["documents"] == len(rows_of(artifact))
    rejected = [
        row for path in artifact.files(suffix=".parquet") if path.name.startswith("rejected") for row in _rows(path)
    ]
    assert Counter(row["reason"] for row in rejected) == dropped
    funnel = read_funnel(artifact)
    assert funnel is not None
    assert {row["rule"]: row["dropped"] for row in funnel["rules"] if row["dropped"]} == dropped
    assert (funnel["in"], funnel["out"]) == (totals["in"], totals["kept"])
    left = funnel["in"]
    for row in funnel["rules"]:
        assert row["in"] == left
        assert row["rule"] == "segment" or row["out"] == left - row["dropped"]
        left = row["out"]
    assert left == funnel["out"]
    assert sum(row["bytes"] for row in funnel["rules"]) == sum(len(row["text"].encode()) for row in rejected)
    assert totals["bytes"] == sum(len(row["text"].encode()) for row in rows_of(artifact))


def _rows(path: Path) -> list[dict[str, object]]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def test_the_funnel_is_in_the_order_of_the_steps(documents: Callable, stage: Callable, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("bad.org")
    rows = [
        {"id": "a", "text": GOOD},
        {"id": "b", "text": "few"},
        {"id": "c", "text": "x", "url": "http://bad.org"},
        {"id": "d", "text": ""},
        {"id": "e", "text": "few words"},
    ]
    _, artifact = stage(run, CleanConfig(), documents(rows), blocklist=FileInput.of(tmp_path / "list", "list"))
    funnel = json.loads(artifact.file("funnel.json").read_text())
    assert [(row["rule"], row["in"], row["dropped"], row["out"], row["bytes"]) for row in funnel["rules"]] == [
        ("url", 5, 1, 4, 1),
        ("empty", 4, 1, 3, 0),
        ("too_few_words", 3, 2, 1, 12),
    ]
    assert funnel["rules"][2]["example"] == {"id": "b", "source": "test", "url": "", "value": 1.0, "text": "few"}


@pytest.mark.parametrize("kept", [True, False])
def test_examples_of_a_rule(documents: Callable, stage: Callable, kept: bool) -> None:
    rows = [{"id": "a", "text": GOOD}, *({"id": str(n), "text": f"too few {n}"} for n in range(9))]
    _, artifact = stage(run, CleanConfig(keep_rejected=kept), documents(rows))
    shown = list(rejected_examples(artifact, "too_few_words", 5))
    assert [row["id"] for row in shown] == (["0", "1", "2", "3", "4"] if kept else ["0"])
    assert shown[0] == {"id": "0", "source": "test", "url": "", "value": 3.0, "text": "too few 0"}
    with pytest.raises(InputError, match="no document was dropped by too_long") as caught:
        list(rejected_examples(artifact, "too_long", 5))
    assert caught.value.hint == "rules: too_few_words"
    with pytest.raises(InputError, match=r"holds no funnel\.json"):
        list(rejected_examples(documents(rows), "too_few_words", 5))


def test_excerpts_hold_nothing_that_a_terminal_obeys() -> None:
    assert excerpt("a\x1b[31m\u202eb\n\n c" + "x" * 300) == "a [31m b c" + "x" * 189 + "…"
    assert excerpt("short") == "short"


def test_more_passes_and_workers_give_the_same(documents: Callable, stage: Callable) -> None:
    rows = [{"id": str(n), "text": f"{text} {n}", "url": f"http://x.org/{n}"} for n, text in enumerate(TEXTS * 3)]
    given_rows = documents(rows)
    config = CONFIGS[2]
    first, one = stage(run, config, given_rows)
    second, two = stage(run, config.model_copy(update={"workers": 2}), given_rows)
    assert [entry.sha256 for entry in one.manifest.files] == [entry.sha256 for entry in two.manifest.files]
    assert first.totals == second.totals
