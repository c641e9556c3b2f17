"""Do our rules keep what datatrove's keep, and how much faster?

Claim: on documentation and on copies of it bent towards every threshold, each set of rules alone and the chain
of FineWeb's pipeline keep the same documents as datatrove for at least 99.9 %, and our chain handles at least 10
times as many documents/s in one process. Both run one after the other on the same documents. Every difference
is printed with both reasons. Rates are by CPU time of the one thread that both use, so other load counts little.

    python bench/rules_parity.py WORK --peer-python PEERS/bin/python [--documents 2000] [--timed 400] [--seed 0]

The peer's interpreter needs `datatrove==0.10.1` and `spacy`; this one needs llmctl only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from rules_corpus import build

from llmctl.config.clean import CleanConfig
from llmctl.data.clean.kernel import Verdict
from llmctl.data.clean.rule_sets import rules
from llmctl.data.clean.rules import Rules
from llmctl.data.tables import DOCUMENTS

PEER = Path(__file__).with_name("rules_peer.py")
BATCH = 256


def kernel(*sets: str, **c4: bool) -> Rules:
    """The rules with these sets on and their defaults."""
    chosen: dict[str, Any] = {name: {"enabled": name in sets} for name in ("quality", "repetition", "c4", "fineweb")}
    chosen["c4"] |= c4
    (made,) = rules(CleanConfig.model_validate(chosen))
    return made


def kernels() -> dict[str, Rules]:
    everything = ("quality", "repetition", "c4", "fineweb")
    return {
        "quality": kernel("quality"), "repetition": kernel("repetition"), "fineweb": kernel("fineweb"),
        "c4": kernel("c4"), "c4_all_lines": kernel("c4", terminal_punctuation=False),
        "chain": kernel(*everything), "chain_all_lines": kernel(*everything, terminal_punctuation=False),
    }  # fmt: skip


def seconds_of(made: Rules, texts: list[str]) -> float:
    """The CPU time of the kernel from Arrow batch to Arrow batch; its vocabulary is empty the first time."""
    rows = [{"id": "", "text": text, "source": "", "url": "", "license": "", "lang": "", "time": ""} for text in texts]
    batches = pa.Table.from_pylist(rows, schema=DOCUMENTS).to_batches(max_chunksize=BATCH)
    started = time.process_time()
    for batch in batches:
        made(batch)
    return time.process_time() - started


def compare(name: str, made: Rules, documents: list[dict[str, str]], theirs: list[dict[str, Any]], show: int) -> None:
    """Print how many decisions agree, and those that do not."""
    same = same_text = both_kept = 0
    for document, row in zip(documents, theirs, strict=True):
        result = made.judge(document["text"])
        reason, digest = row[name]
        dropped = isinstance(result, Verdict)
        if dropped == (reason is not None):
            same += 1
            if not isinstance(result, Verdict):
                both_kept += 1
                same_text += hashlib.sha256(result.text.encode()).hexdigest() == digest
        elif show > 0:
            show -= 1
            ours = f"{result.reason} {result.value:.4g}" if isinstance(result, Verdict) else "kept"
            print(f"  {name}: {document['id']}: ours {ours}, datatrove {reason or 'kept'}")
    share, kept = same / len(documents), f"{same_text} of {both_kept}"
    print(f"{name:16} same decision {same} of {len(documents)} ({share:.4%}), same text where both keep {kept}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="where bench/corpus.py wrote its corpus")
    parser.add_argument("--peer-python", required=True, help="interpreter with datatrove and spaCy")
    parser.add_argument("--documents", type=int, default=2000, help="originals; there is a bent copy of each")
    parser.add_argument("--timed", type=int, default=400, help="documents of the timed run of datatrove's chain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=50, help="most differences printed for each set")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        corpus, decisions = Path(directory, "corpus.jsonl"), Path(directory, "decisions.jsonl")
        build(corpus, given.work, given.documents, given.seed)
        documents = [json.loads(line) for line in corpus.read_text(encoding="utf-8").split("\n") if line]
        texts = [document["text"] for document in documents]
        size = sum(len(text.encode()) for text in texts)
        print(f"{len(texts)} documents, {size / 1e6:.1f} MB, Python {sys.version.split()[0]}", flush=True)
        command = [given.peer_python, str(PEER), str(corpus), str(decisions), str(given.timed)]
        said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")[-2])
        theirs = [json.loads(line) for line in decisions.read_text(encoding="utf-8").split("\n") if line]
    made = kernels()
    for name in made:
        compare(name, made[name], documents, theirs, given.show)
    timed = texts[: said["documents"]]
    rate = len(timed) / said["seconds"]
    print(f"datatrove chain_all_lines: {rate:.0f} documents/s on the first {len(timed)}")
    for label, chosen in ((f"the first {len(timed)}", timed), ("all", texts)):
        chain = kernels()["chain_all_lines"]
        cold, warm = (len(chosen) / seconds_of(chain, chosen) for _ in range(2))
        print(
            f"ours, one process, chain_all_lines, {label}: {cold:.0f} documents/s ({cold / rate:.1f} times); "
            f"{warm:.0f} with every chunk met before ({warm / rate:.1f} times)"
        )


if __name__ == "__main__":
    main()
