from llmctl.data.collect.stage import run, sources

__all__ = ["run", "sources"]
