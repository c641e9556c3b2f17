"""The one default of every stage that splits documents by the house rule (docs/decisions/0003)."""

from __future__ import annotations

HELDOUT_FRACTION = 0.05
"""Share of the documents, by the hash of their ids, on which nothing trains: the same for pack, chats, quiz and sft."""
