"""`python -m llada`: the same as the `llada` command."""

from llada.cli import main

main()
