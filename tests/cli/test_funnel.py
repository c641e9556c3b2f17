"""The funnel on the command line."""

import json
import re
from collections.abc import Callable
from pathlib import Path

GOOD = (
    "The small bakery at the corner opens before sunrise. By the time that first commuters walk past, smells of fresh "
    "bread have filled our street, and its owner greets everyone by name while she wraps warm rolls in brown paper. "
    "Children stop on their way to school, press noses against glass, and think for a long time about what to buy."
)


def test_rejected_documents_are_shown(llmctl: Callable, tmp_path: Path) -> None:
    rows = [
        {"id": "a", "text": GOOD},
        {"id": "b", "text": "too few"},
        {"id": "c", "text": GOOD, "url": "http://bad.org/x"},
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "block.txt").write_text("# bad hosts\nbad.org\n")
    assert llmctl("collect", "d.jsonl", "--name", "d", "-q").returncode == 0
    done = llmctl(
        "clean",
        "d",
        "--blocklist",
        "block.txt",
        "--keep-rejected",
        "--pii",
        "redact",
        "--lang",
        "en",
        "--min-score",
        "0",
        "-q",
    )
    assert done.stdout == "d.clean@v1\n", done.stderr
    shown = llmctl("show", "d.clean", "--rejected", "url")
    assert "http://bad.org/x), url 2\nThe small bakery" in shown.stdout
    lines = llmctl("show", "d.clean", "--rejected", "too_few_words", "--json").stdout.splitlines()
    assert [(json.loads(line)["text"], json.loads(line)["value"]) for line in lines] == [("too few", 2.0)]
    table = llmctl("show", "d.clean").stdout  # 80 columns wide
    assert re.search(r"^rule +in +dropped +out +size +for example", table, re.MULTILINE)
    assert re.search(r"^too_few_words +2 +1 +1 +7 B +2  too few", table, re.MULTILINE)
    unknown = llmctl("show", "d.clean", "--rejected", "nothing")
    assert unknown.returncode == 3
    assert "rules: url, too_few_words" in unknown.stderr
    (tmp_path / "block.txt").write_text("other.org\n")
    again = llmctl("clean", "d", "--blocklist", "block.txt", "--json")
    assert json.loads(again.stdout.splitlines()[-1])["cached"] is False  # the list's content decides
