"""datatrove's side of rules_parity.py, run by an interpreter that has datatrove and spaCy.

    python bench/rules_peer.py corpus.jsonl decisions.jsonl TIMED

Writes a line for each document: for each set of rules, null where it is kept, else datatrove's reason; for
chains also the digest of the text that is left. Prints the CPU seconds of the chain on the first TIMED documents.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any


def filters() -> dict[str, list[Any]]:
    """The sets of rules with class defaults, and the two chains."""
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    quality, repetition, fineweb = GopherQualityFilter(), GopherRepetitionFilter(), FineWebQualityFilter()
    c4, c4_all_lines = C4QualityFilter(), C4QualityFilter(filter_no_terminal_punct=False)
    return {
        "quality": [quality], "repetition": [repetition], "fineweb": [fineweb],
        "c4": [c4], "c4_all_lines": [c4_all_lines],
        "chain": [repetition, quality, c4, fineweb], "chain_all_lines": [repetition, quality, c4_all_lines, fineweb],
    }  # fmt: skip


def decide(chain: list[Any], text: str) -> tuple[str | None, str]:
    """(reason or None, the text that is left)."""
    from datatrove.data import Document

    document = Document(text=text, id="")
    for rules in chain:
        result = rules.filter(document)
        kept, reason = result if isinstance(result, tuple) else (result, "")
        if not kept:
            return reason, document.text
    return None, document.text


def main() -> None:
    corpus, out, timed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").split("\n") if line]
    sets = filters()
    decide(sets["chain"], "Loads the tokenizer. " * 30)
    started = time.process_time()
    for text in texts[:timed]:
        decide(sets["chain_all_lines"], text)
    seconds = time.process_time() - started
    with out.open("w", encoding="utf-8") as file:
        for text in texts:
            row = {}
            for name, chain in sets.items():
                reason, left = decide(chain, text)
                row[name] = [reason, None if reason else hashlib.sha256(left.encode()).hexdigest()]
            file.write(json.dumps(row) + "\n")
    print(json.dumps({"seconds": seconds, "documents": min(timed, len(texts))}))


if __name__ == "__main__":
    main()
