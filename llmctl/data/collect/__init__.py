from llmctl.data.collect.sources import fetch_sources
from llmctl.data.collect.stage import run, sources

__all__ = ["fetch_sources", "run", "sources"]
