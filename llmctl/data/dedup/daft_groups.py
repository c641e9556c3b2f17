"""The groups of `NumpyGrouping` as plans of Daft, for corpora whose keys are grouped on a cluster.

Only keys and places travel: (band, key, part, row). Daft's runner decides where: on Ray once `ray_workers` has
connected, on this machine otherwise. What comes back is brought into one order, so both groupings are equal.
"""

from __future__ import annotations

from typing import Any

import daft
import numpy as np
import pyarrow as pa
from daft import col
from daft.functions import list_agg

from llmctl.data.dedup.groups import Groups, Mask, Rows
from llmctl.data.dedup.keys import EXACT, Keys, band_names

PLACE = ("part", "row")


class DaftGrouping:
    """Groups by Daft's `groupby`, documents that went left out by an anti-join."""

    def exact(self, keys: Keys) -> Groups:
        """As `Grouping.exact`."""
        frame = _read(keys, "emptied", *EXACT).where(~col("emptied"))
        return _groups(keys, frame, EXACT)

    def near(self, keys: Keys, bands: int, among: Mask) -> list[Groups]:
        """As `Grouping.near`."""
        gone = np.flatnonzero(~among)
        part = np.searchsorted(keys.starts, gone, side="right") - 1
        away = daft.from_arrow(
            pa.table({"part": pa.array(part, pa.int32()), "row": pa.array(gone - keys.starts[part], pa.int32())})
        )
        groups = []
        for name in band_names(bands):
            frame = _read(keys, "shingled", name).where(col("shingled"))
            if len(gone):
                frame = frame.join(away, on=list(PLACE), how="anti")
            groups.append(_groups(keys, frame, (name,)))
        return groups


def _read(keys: Keys, *columns: str) -> daft.DataFrame:
    frame = daft.read_parquet([str(path) for path in keys.files])
    return frame.select(*PLACE, *columns)


def _groups(keys: Keys, frame: daft.DataFrame, by: tuple[str, ...]) -> Groups:
    """Groups of documents that agree in the columns `by`, in the order of their keys."""
    counted = frame.groupby(*by).agg(
        list_agg(col("part")).alias("parts"), list_agg(col("row")).alias("rows"), col("row").count().alias("count")
    )
    table = counted.where(col("count") > 1).to_arrow()
    if not len(table):
        return Groups.of([])
    order = np.lexsort([table.column(name).to_numpy() for name in reversed(by)])
    table = table.take(pa.array(order))
    members = keys.starts[_flat(table, "parts")] + _flat(table, "rows")
    offsets = np.concatenate(([0], np.cumsum(table.column("count").to_numpy()))).astype(np.int64)
    found = Groups(members, offsets)
    return found.renumbered(np.arange(len(keys)))  # ascending in each group


def _flat(table: pa.Table, name: str) -> Rows:
    values: Any = table.column(name).combine_chunks().flatten().to_numpy()
    return values.astype(np.int64)  # type: ignore[no-any-return]
