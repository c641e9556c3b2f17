"""Personal data and secrets: redacted, tagged, or a reason to drop the document; always counted by kind."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pyarrow as pa

from llmctl.config.clean_steps import PiiConfig
from llmctl.data.clean.kernel import with_column, with_reasons, with_text
from llmctl.data.clean.pii_patterns import finders


class Finding(NamedTuple):
    """Where a text holds what kind of personal data: characters `start` to `end`."""

    start: int
    end: int
    kind: str


class Pii:
    """Looks for personal data, and does with it what the configuration says.

    Attributes:
        counts: findings by kind (`pii.email`), over all batches so far.
    """

    def __init__(self, config: PiiConfig) -> None:
        self.config = config
        wanted = set(config.kinds)
        self.finders = [finder for finder in finders(public_ips_only=config.public_ips_only) if finder.kind in wanted]
        self.counts: Counter[str] = Counter()

    def find(self, text: str) -> list[Finding]:
        """All findings by place; where two overlap, the kind that is listed first in `PII_KINDS` wins."""
        found: list[Finding] = []
        if not any(map(text.__contains__, "0123456789@-_")):
            return found
        for finder in self.finders:
            if not finder.hint or finder.hint in text:
                spans = sorted(finder.find(text))
                found = _merged(found, [Finding(start, end, finder.kind) for start, end in spans])
        return found

    def redact(self, text: str) -> str:
        """The text with `[EMAIL]` and the like in the place of each finding; doing it twice changes nothing more."""
        found = self.find(text)
        return redacted(text, found) if found else text

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """`batch` with texts redacted, the column `pii` written, or reasons such as `pii_email` filled in."""
        texts: list[str] = batch.column("text").to_pylist()
        found = [self.find(text) for text in texts]
        by_kind = [Counter(finding.kind for finding in findings) for findings in found]
        for kinds in by_kind:
            self.counts.update({f"pii.{kind}": count for kind, count in kinds.items()})
        if self.config.action == "redact":
            changed = [
                redacted(text, findings) if findings else text for text, findings in zip(texts, found, strict=True)
            ]
            return with_text(batch, changed)
        if self.config.action == "tag":
            tags = [" ".join(f"{kind}:{kinds[kind]}" for kind in sorted(kinds)) for kinds in by_kind]
            return with_column(batch, "pii", pa.array(tags, pa.string()))
        first = [findings[0].kind if findings else None for findings in found]
        reasons = [f"pii_{kind}" if kind else None for kind in first]
        return with_reasons(batch, reasons, [float(len(findings)) for findings in found])


def redacted(text: str, found: list[Finding]) -> str:
    """`text` with each finding replaced by its kind in brackets."""
    pieces, done = [], 0
    for start, end, kind in found:
        pieces += [text[done:start], f"[{kind.upper()}]"]
        done = end
    return "".join([*pieces, text[done:]])


def _merged(strong: list[Finding], weak: list[Finding]) -> list[Finding]:
    """Both lists, sorted by place, without those of `weak` that overlap one before them or one of `strong`."""
    merged: list[Finding] = []
    first = 0
    for finding in weak:
        while first < len(strong) and strong[first].end <= finding.start:
            merged.append(strong[first])
            first += 1
        free = first == len(strong) or strong[first].start >= finding.end
        if free and (not merged or merged[-1].end <= finding.start):
            merged.append(finding)
    return [*merged, *strong[first:]]
