from llmctl.data.clean.stage import run

__all__ = ["run"]
