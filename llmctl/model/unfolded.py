"""Rows that begin alike, whose beginning is computed once: they lie folded, and are unfolded for attention alone.

Everything else in a model treats each place by itself, so a place that many rows share is worth one. Answers to one
prompt are such rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from llmctl.model.attention import PLAIN, Attend, Scoring
from llmctl.model.kernels import attend_through
from llmctl.tokens.batch import PADDING_DOCUMENT


@dataclass(frozen=True)
class Unfolded:
    """An `Attend` of N places that R rows of up to T are made of.

    Attributes:
        attend: within the rows.
        rows: int64 [R,T], which place stands where.
        home: int64 [N], where among the R x T the result of a place is; of one that rows share, in the first of them.
    """

    keeps: ClassVar[bool] = False

    attend: Attend
    rows: Tensor
    home: Tensor

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring = PLAIN) -> Tensor:
        """Attend by the layer's rule; the places lie in any shape [B,N/B]."""
        places = self.home.view(q.shape[:2])
        q, k, v = (_taken(x, self.rows) for x in (q, k, v))
        return _taken(self.attend(layer, q, k, v, scoring), places)


def unfolded(backend: str, rows: Tensor, home: Tensor) -> Unfolded:
    """Attention through one of the kernels of `attend_through`.

    Args:
        backend: its name.
        rows: as in `Unfolded`, each a document; -1 behind its end.
        home: as in `Unfolded`.
    """
    documents = torch.where(rows < 0, PADDING_DOCUMENT, 0).to(torch.int32)
    return Unfolded(attend_through(backend, documents, one_each=True), rows.clamp(min=0), home)


def _taken(x: Tensor, places: Tensor) -> Tensor:
    """From [B,T,H,E], whose first two say the place, to [*places,H,E].

    A look-up in a table, for that has the quickest of torch's gradients on a CPU where places come more than once.
    """
    H, E = x.shape[2:]
    return functional.embedding(places, x.reshape(-1, H * E)).view(*places.shape, H, E)
