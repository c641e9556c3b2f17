"""Which sets of rules a configuration asks for, in their order."""

from __future__ import annotations

from llmctl.config.clean import CleanConfig
from llmctl.data.clean.gopher_quality import GopherQuality
from llmctl.data.clean.gopher_repetition import GopherRepetition
from llmctl.data.clean.kernel import Rule


def rules(config: CleanConfig) -> list[Rule]:
    """The kernels of the rule sets that are on; quality comes first, as it costs less."""
    chosen: list[Rule] = []
    if config.quality.enabled:
        chosen.append(GopherQuality(config.quality))
    if config.repetition.enabled:
        chosen.append(GopherRepetition(config.repetition))
    return chosen
