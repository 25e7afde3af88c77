"""`python -m mimkit`."""

from mimkit.cli import main

main()
