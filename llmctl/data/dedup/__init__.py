from llmctl.data.dedup.stage import run

__all__ = ["run"]
