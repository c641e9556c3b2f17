from llmctl.data.stats.measure import measure, report

__all__ = ["measure", "report"]
