"""Personal data: what is found and what is not, what is done with it, and linear time on hostile text."""

import importlib.util
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.config.clean import CleanConfig
from llmctl.config.clean_steps import PII_KINDS, PiiConfig
from llmctl.data.clean import run
from llmctl.data.clean.pii import Pii, redacted
from llmctl.data.clean.pii_patterns import luhn, mod97
from llmctl.data.tables import DOCUMENTS
from tests.data.conftest import rows_of

REDACT = Pii(PiiConfig(action="redact"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to jane.doe+x@mail.example.co.uk.", "Write to [EMAIL]."),
        ("a@b, user@host, @handle, a@b.c1", None),
        ("git@github.com:org/repo", "[EMAIL]:org/repo"),
        ("call +49 (0) 30 1234567, (212) 555-0123 or 1-212-555-0123!", "call [PHONE], [PHONE] or [PHONE]!"),
        ("Tel.: 030/1234567. Room 030/1234567", "Tel.: [PHONE]. Room 030/1234567"),
        ("in 2024-05-06 pages 123-456, 3.14159265, 12345-6789, ISBN 978-0-007-61210-1", None),
        ("DE89 3704 0044 0532 0130 00 and GB29NWBK60161331926819", "[IBAN] and [IBAN]"),
        ("DE89 3704 0044 0532 0130 01", None),  # check digits
        ("NO93 8601 1117 947 AND MORE", "[IBAN] AND MORE"),
        ("4111 1111 1111 1111; 3782-822463-10005; 5555555555554444", "[CARD]; [CARD]; [CARD]"),
        ("4111 1111 1111 1112, 1234567812345670", None),  # Luhn; no issuer
        (
            "123-45-6789, 000-12-3456, 666-12-3456, 900-12-3456, 123-00-4567",
            "[SSN], 000-12-3456, 666-12-3456, 900-12-3456, 123-00-4567",
        ),
        (
            "8.8.8.8, 192.168.1.1, 127.0.0.1, 999.1.1.1, v1.2.3.4, 1.2.3.4.5",
            "[IP], 192.168.1.1, 127.0.0.1, 999.1.1.1, v1.2.3.4, 1.2.3.4.5",
        ),
        ("2a00:1450:4001:82f::200e, ::1, 12:30:45, std::vector", "[IP], ::1, 12:30:45, std::vector"),
        ("AKIAIOSFODNN7EXAMPLE ghp_" + "a" * 36 + " sk-" + "b" * 48 + " sk-learn", "[KEY] [KEY] [KEY] sk-learn"),
        ("xoxb-1234567890-abc AIza" + "x" * 35, "[KEY] [KEY]"),
        ("aws_secret_access_key = " + "Ab1/" * 10, "[KEY]"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijklmnopqrst", "[KEY]"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE\na@b.com\n-----END PRIVATE KEY-----\nrest", "[KEY]\nrest"),
        ("-----BEGIN PRIVATE KEY----- cut", "[KEY] cut"),
        ("-----BEGIN PUBLIC KEY-----\nMIIE\n-----END PUBLIC KEY-----", None),
    ],
)
def test_what_is_redacted(text: str, expected: str | None) -> None:
    once = REDACT.redact(text)
    assert once == (text if expected is None else expected)
    assert REDACT.redact(once) == once


def test_recall_and_precision_by_kind(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "bench" / "pii.py"
    spec = importlib.util.spec_from_file_location("bench_pii", path)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    figures = bench.measure(seed=7)
    with capsys.disabled():
        sys.stdout.write("".join(f"\n{kind}: recall {r:.3f}, precision {p:.3f}" for kind, (r, p) in figures.items()))
    assert set(figures) == set(PII_KINDS)
    assert min(min(pair) for pair in figures.values()) > 0.97


HOSTILE = [
    "a" * 100_000 + "@",
    "a@" * 50_000,
    "a.b" * 50_000 + "@c",
    "a@" + "b." * 50_000,
    "1-" * 50_000,
    "+1 " * 50_000,
    "0" * 100_000,
    "4111 " * 20_000,
    "DE89 " * 20_000,
    "::" * 50_000,
    "1." * 50_000,
    "a:" * 50_000,
    "eyJ" * 30_000,
    "eyJaaaaaaaaa." * 10_000,
    "-----BEGIN PRIVATE KEY-----" * 4_000,
    "sk-" * 30_000,
    "xoxb-" * 20_000,
    "(212) " * 20_000,
    "Tel.: 0" * 10_000,
    "AKIA" * 25_000,
    ("+1" + "9" * 60 + "x ") * 1500,
    ("Tel.: 0" + "9" * 60 + "x ") * 1500,
    "+49 (0) 30 " * 9000 + "-",
    "[KEY]" * 20_000,
    "aws_secret_access_key=" * 5_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:12]))
def test_hostile_text_ends(text: str) -> None:
    """100,000 characters: what took quadratic time would run into the timeout of the test run a hundred times over."""
    for _ in range(3):
        REDACT.redact(text)


@given(st.text(alphabet="a1@.:-+ (0)DE4eyJ\n_sk", max_size=200))
def test_findings_are_in_order_and_apart(text: str) -> None:
    found = REDACT.find(text)
    assert all(0 <= one.start < one.end <= len(text) for one in found)
    assert all(one.end <= two.start for one, two in pairwise(found))
    kept = re.sub(r"\[[A-Z]+\]", "", redacted(text, found)) if found else text
    assert len(kept) == len(text) - sum(one.end - one.start for one in found) or "[" in text


def test_checks() -> None:
    assert luhn("79927398713")
    assert not luhn("79927398710")
    assert mod97("GB82WEST12345698765432") == 1


def batch_of(*texts: str) -> pa.RecordBatch:
    rows = [{**dict.fromkeys(DOCUMENTS.names, ""), "id": str(n), "text": text} for n, text in enumerate(texts)]
    return pa.RecordBatch.from_pylist(rows, schema=DOCUMENTS)


def test_tag_drop_and_kinds() -> None:
    texts = ("a@b.org c@d.org 8.8.8.8", "nothing")
    tagged = Pii(PiiConfig(action="tag"))(batch_of(*texts))
    assert tagged.column("pii").to_pylist() == ["email:2 ip:1", ""]
    assert tagged.column("text").to_pylist() == list(texts)
    dropped = Pii(PiiConfig(action="drop"))(batch_of(*texts))
    assert dropped.column("reason").to_pylist() == ["pii_email", None]
    assert dropped.column("value").to_pylist() == [3.0, None]
    only = Pii(PiiConfig.model_validate({"action": "redact", "kinds": "ip, key"}))
    assert only(batch_of(*texts)).column("text").to_pylist()[0] == "a@b.org c@d.org [IP]"
    assert dict(only.counts) == {"pii.ip": 1}
    assert Pii(PiiConfig(action="redact", public_ips_only=False)).redact("10.0.0.1") == "[IP]"


def test_what_is_kept_to_look_at_is_redacted_too(documents: Callable, stage: Callable) -> None:
    good = " ".join(f"the word of number{n}" for n in range(30))
    given = documents([{"id": "long", "text": good + " at x@y.org"}, {"id": "short", "text": "mail x@y.org"}])
    config = CleanConfig(pii={"action": "redact"}, keep_rejected=True, repetition={"enabled": False})
    product, artifact = stage(run, config, given)
    assert product.totals["pii.email"] == 1  # in documents that stay
    assert rows_of(artifact)[0]["text"].endswith("at [EMAIL]")
    assert rows_of(artifact, "rejected")[0]["text"] == "mail [EMAIL]"
    assert b"x@y.org" not in artifact.file("funnel.json").read_bytes()
