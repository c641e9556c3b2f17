"""Which kernels a configuration and its inputs ask for, in which order, and where the order must wait for all parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from llmctl.config.clean import CleanConfig
from llmctl.data.clean.kernel import NotEmpty
from llmctl.data.clean.rule_sets import rules

Kernel = Callable[[pa.RecordBatch], pa.RecordBatch]
Stretch = Literal["extract", "judge", "finish"]
STRETCHES: tuple[Stretch, ...] = ("extract", "judge", "finish")

BOILERPLATE_FILE = "boilerplate.npy"
SEGMENT_STEP = 1000 * STRETCHES.index("finish") + 500  # steps are numbered by stretch, then by place


@dataclass(frozen=True)
class Setting:
    """What decides how documents are cleaned; travels to the workers.

    Attributes:
        config: the configuration.
        files: the optional inputs by role: lists and models.
        facts: what is known of these inputs: `classifier.max_characters`, `kenlm.lowercase`.
        boilerplate: the keys of recurring lines, once they are counted.
        least_quality: the score at the wanted quantile, once all are known.
    """

    config: CleanConfig
    files: Mapping[str, Path] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    boilerplate: Path | None = None
    least_quality: float | None = None

    def passes(self) -> list[tuple[Stretch, ...]]:
        """The stretches, a group for each pass over the documents."""
        groups: list[list[Stretch]] = [["extract"]]
        for stretch, waits in (("judge", self.config.boilerplate.enabled), ("finish", self.by_quantile)):
            if waits:
                groups.append([])
            groups[-1].append(stretch)  # type: ignore[arg-type]
        return [tuple(group) for group in groups]

    @property
    def by_quantile(self) -> bool:
        """Whether what stays depends on the scores of all documents."""
        return self.config.classifier.keep_quantile is not None and "classifier" in self.files

    def extra(self) -> list[str]:
        """The extra columns that the kernels write."""
        written = {
            "lang_score": self.config.language.enabled,
            "quality": "classifier" in self.files,
            "perplexity": "kenlm" in self.files,
            "pii": self.config.pii.action == "tag",
        }
        return [name for name, there in written.items() if there]

    def kernels(self, stretch: Stretch) -> list[tuple[int, Kernel]]:
        """(number of the step, kernel) of a stretch, in order."""
        made = {"extract": self._extract, "judge": self._judge, "finish": self._finish}[stretch]()
        first = 1000 * STRETCHES.index(stretch)
        numbered = [(first + place, kernel) for place, kernel in enumerate(made)]
        return [*numbered, *self._cut()] if stretch == "finish" else numbered

    def _extract(self) -> list[Kernel]:
        """URL lists before any work on the text; then the text in its normal form."""
        from llmctl.data.clean.html import HtmlToText
        from llmctl.data.clean.pages import trafilatura_text
        from llmctl.data.clean.unicode import ComposeUnicode, RepairEncoding
        from llmctl.data.clean.whitespace import NormalizeWhitespace

        config = self.config
        chosen: list[Kernel] = []
        if "blocklist" in self.files or "allowlist" in self.files or config.urls.only_allowed:
            from llmctl.data.clean.urls import UrlList, UrlRules

            block, allow = (UrlList.read(self.files[role]) if role in self.files else None
                            for role in ("blocklist", "allowlist"))  # fmt: skip
            chosen.append(UrlRules(block, allow, only_allowed=config.urls.only_allowed))
        convert = trafilatura_text if config.extractor == "trafilatura" else None
        chosen.append(HtmlToText(config.html, main_content=config.main_content, convert=convert))
        if config.repair_unicode:
            chosen.append(RepairEncoding())
        return [*chosen, NormalizeWhitespace(), ComposeUnicode(), NotEmpty()]

    def _judge(self) -> list[Kernel]:
        """What drops documents by their normalised text; cheap rules before models."""
        config = self.config
        chosen: list[Kernel] = []
        if self.boilerplate is not None:
            from llmctl.data.clean.boilerplate import WithoutBoilerplate

            chosen += [WithoutBoilerplate(config.boilerplate, np.load(self.boilerplate)), NotEmpty("only_boilerplate")]
        if config.language.enabled:
            from llmctl.data.clean.language import Language

            chosen.append(Language(config.language))
        chosen += rules(config)
        if "hardwords" in self.files or "softwords" in self.files:
            from llmctl.data.clean.harmful_words import HarmfulWords, WordList

            hard, soft = (WordList.read(self.files[role]) if role in self.files else None
                          for role in ("hardwords", "softwords"))  # fmt: skip
            chosen.append(HarmfulWords(config.harmful, hard, soft))
        if "kenlm" in self.files:
            from llmctl.data.clean.perplexity import Perplexity

            lowercase = self.facts.get("kenlm.lowercase", config.perplexity.lowercase)
            asked = config.perplexity.model_copy(update={"lowercase": lowercase})
            chosen.append(Perplexity(self.files["kenlm"], asked))
        if "classifier" in self.files:
            from llmctl.data.clean.quality_classifier import Quality

            most = self.facts["classifier.max_characters"]
            chosen.append(Quality(self.files["classifier"], most, config.classifier.min_score))
        return chosen

    def _finish(self) -> list[Kernel]:
        """What looks at the documents that stay."""
        chosen: list[Kernel] = []
        if self.least_quality is not None:
            from llmctl.data.clean.quality_classifier import AboveQuantile

            chosen.append(AboveQuantile(self.least_quality))
        if self.config.pii.action != "keep":
            from llmctl.data.clean.pii import Pii

            chosen.append(Pii(self.config.pii))
        return chosen

    def _cut(self) -> list[tuple[int, Kernel]]:
        """Segments and bounds on their length, last of all."""
        from llmctl.data.clean.segments import Length, Segments

        segment = self.config.segment
        chosen: list[tuple[int, Kernel]] = []
        if segment.by != "none":
            chosen.append((SEGMENT_STEP, Segments(segment)))
        if segment.min_characters or segment.max_characters is not None:
            chosen.append((SEGMENT_STEP + 1, Length(segment)))
        return chosen
