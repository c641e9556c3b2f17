"""Numbers of which every quantile is wanted: how often each value came."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class Values:
    """Exact distribution of whole numbers. Memory: 16 bytes per different value."""

    def __init__(self, values: Ints | None = None) -> None:
        self.values, self.counts = np.unique(np.empty(0, np.int64) if values is None else values, return_counts=True)

    @property
    def total(self) -> int:
        """Sum of all of them."""
        return int((self.values * self.counts).sum())

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.counts.sum())

    def merge(self, other: Values) -> None:
        """Add the numbers of another distribution."""
        merged, places = np.unique(np.concatenate([self.values, other.values]), return_inverse=True)
        counts = np.zeros(len(merged), dtype=np.int64)
        np.add.at(counts, places, np.concatenate([self.counts, other.counts]))
        self.values, self.counts = merged, counts

    def quantile(self, share: float) -> int:
        """The smallest value that at least `share` of all numbers do not exceed."""
        place = np.searchsorted(np.cumsum(self.counts), np.ceil(share * self.count), side="left")
        return int(self.values[min(int(place), len(self.values) - 1)])

    def summary(self) -> dict[str, int | float]:
        """Least, greatest, mean and quantiles; nothing where there is no number."""
        if not self.count:
            return {}
        found: dict[str, int | float] = {"min": int(self.values[0])}
        found |= {f"p{round(100 * share)}": self.quantile(share) for share in QUANTILES}
        return found | {"max": int(self.values[-1]), "mean": round(self.total / self.count, 2)}

    def histogram(self) -> list[dict[str, int]]:
        """Numbers by powers of two: how many are in `from` <= number < `below`; zeros apart."""
        bins: list[dict[str, int]] = []
        exponent = np.where(self.values > 0, np.floor(np.log2(np.maximum(self.values, 1))).astype(np.int64) + 1, 0)
        for place in range(int(exponent[0]), int(exponent[-1]) + 1) if len(exponent) else ():
            low, high = (0, 1) if place == 0 else (2 ** (place - 1), 2**place)
            bins.append({"from": low, "below": high, "count": int(self.counts[exponent == place].sum())})
        return bins
