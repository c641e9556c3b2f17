from llmctl.data.decontaminate.stage import run

__all__ = ["run"]
