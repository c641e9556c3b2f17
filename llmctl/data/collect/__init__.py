from llmctl.data.collect.stage import fetch_sources, run, sources

__all__ = ["fetch_sources", "run", "sources"]
