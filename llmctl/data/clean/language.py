"""Which language a text is in, by fastText's lid.176 (176 languages), offline."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from llmctl.config.clean_steps import LanguageConfig
from llmctl.data.clean.fasttext_model import load_model, predict
from llmctl.data.clean.kernel import with_column, with_reasons

MODEL = Path(__file__).parent / "resources" / "lid.176.ftz"  # its licence: NOTICE.md beside it
MOST_CHARACTERS = 4000


class Language:
    """Sets `lang` and `lang_score` of prose, and drops what is in no wanted language.

    Source code, whose `lang` is the name of a programming language, stays as it is, with a null score. The value
    of a dropped document is its score: under `min_score` the language is wanted but not certain enough, or the
    language is another one, which `lang` names.
    """

    def __init__(self, config: LanguageConfig) -> None:
        self.config = config
        self.wanted = frozenset(config.keep)

    @cached_property
    def model(self) -> Any:
        """The model, loaded when the first batch comes."""
        return load_model(MODEL)

    @cached_property
    def codes(self) -> frozenset[str]:
        """All languages that the model knows."""
        return frozenset(label.removeprefix("__label__") for label in self.model.get_labels())

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """`batch` with `lang`, `lang_score`, `reason` and `value` brought up to date."""
        named = batch.column("lang").to_pylist()
        texts = batch.column("text").to_pylist()
        prose = [row for row, lang in enumerate(named) if not lang or lang.partition("-")[0] in self.codes]
        found, certain = predict(self.model, [texts[row] for row in prose], MOST_CHARACTERS)
        scores: list[float | None] = [None] * len(named)
        reasons: list[str | None] = [None] * len(named)
        for row, lang, score in zip(prose, found, certain, strict=True):
            named[row], scores[row] = lang, float(score)
            if self.wanted and (lang not in self.wanted or score < self.config.min_score):
                reasons[row] = "language"
        batch = with_column(batch, "lang_score", pa.array(scores, pa.float64()))
        place = batch.schema.names.index("lang")
        batch = batch.set_column(place, batch.schema.field(place), pa.array(named, pa.string()))
        return with_reasons(batch, reasons, scores)
