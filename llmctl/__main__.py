"""`python -m llmctl` and `deepspeed --module llmctl`."""

from llmctl.cli.main import main

main()
