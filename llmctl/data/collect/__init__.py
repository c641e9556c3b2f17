from llmctl.data.collect.stage import fingerprint, run, source_name

__all__ = ["fingerprint", "run", "source_name"]
