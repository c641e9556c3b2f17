from llmctl.data.mix.stage import run

__all__ = ["run"]
