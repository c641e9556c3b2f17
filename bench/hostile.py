"""How long each text step of `clean`, and its neighbours, take on strings made to slow patterns down (ReDoS).

    python bench/hostile.py [--characters 10000 100000]

CPU milliseconds of the slowest string for each step, at each length. The steps and the strings are those of
tests/data/test_hostile_strings.py: everything that has a switch, switched on, and every unit repeated.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.data.test_hostile_strings import READERS, STRINGS, batch_of, cpu_seconds, steps


def slowest(step: Callable[[Any], object], made: Callable[[str], object], length: int) -> tuple[float, str]:
    """Milliseconds and unit of the string that takes longest."""
    return max((1000 * cpu_seconds(step, made((unit * length)[:length] + "\0!")), unit) for unit in STRINGS)


def main() -> None:
    """Print a row for each step, the slowest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--characters", type=int, nargs="+", default=[10_000, 100_000])
    lengths = parser.parse_args().characters
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for name, step in steps(Path(directory)).items():
            step(batch_of("a"))
            rows.append((name, [slowest(step, batch_of, length) for length in lengths]))
    rows += [(reader.__name__, [slowest(reader, str, length) for length in lengths]) for reader in READERS]
    for name, found in sorted(rows, key=lambda row: -row[1][-1][0]):
        print(f"{name:24}", "  ".join(f"{ms:8.1f} ms {unit!r:8}" for ms, unit in found), flush=True)


if __name__ == "__main__":
    main()
