"""`python -m llmctl` and `deepspeed --module llmctl`."""

from llmctl.cli.main import main

if __name__ == "__main__":  # worker processes import this file under another name
    main()
