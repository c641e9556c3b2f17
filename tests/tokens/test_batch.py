from __future__ import annotations

from llmctl.tokens.batch import padded_groups


def test_padded_groups_are_bounded_and_complete() -> None:
    lengths = [3, 50, 7, 7, 1, 20, 19, 200]
    groups = padded_groups(lengths, 64)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or max(lengths[i] for i in group) * len(group) <= 64 for group in groups)
    assert groups[0] == [7]
