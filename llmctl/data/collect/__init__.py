from llmctl.data.collect.stage import fingerprint, run, source_name, sources

__all__ = ["fingerprint", "run", "source_name", "sources"]
