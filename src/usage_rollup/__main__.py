"""`python -m usage_rollup` is `usage-rollup`."""

from .commands.cli import main

main()
