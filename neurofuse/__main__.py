"""`python -m neurofuse` is the command line."""

from neurofuse.cli import main

main()
