"""Which sets of rules a configuration asks for, in their order."""

from __future__ import annotations

from llmctl.config.clean import CleanConfig
from llmctl.data.clean.c4 import C4
from llmctl.data.clean.code import CodeRules
from llmctl.data.clean.fineweb import FineWeb
from llmctl.data.clean.gopher_quality import GopherQuality
from llmctl.data.clean.gopher_repetition import GopherRepetition
from llmctl.data.clean.rules import Rules, RuleSet


def rules(config: CleanConfig) -> list[Rules]:
    """The kernel with the sets that are on; none if none is.

    The order is that of FineWeb's pipeline, but for quality, which comes before repetition as it costs less:
    neither rewrites the text, so the same documents are kept. C4 rewrites it, and FineWeb's rules see the rest.
    """
    sets: tuple[tuple[bool, RuleSet], ...] = (
        (config.quality.enabled, GopherQuality(config.quality)),
        (config.repetition.enabled, GopherRepetition(config.repetition)),
        (config.c4.enabled, C4(config.c4)),
        (config.fineweb.enabled, FineWeb(config.fineweb)),
    )
    prose = [chosen for enabled, chosen in sets if enabled]
    code = [CodeRules(config.code)] if config.code.enabled else []
    if not prose and not code:
        return []
    return [Rules(prose, code, config.code.languages if code else ())]
