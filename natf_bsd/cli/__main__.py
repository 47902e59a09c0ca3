"""`python -m natf_bsd.cli`: the command `natf` where it is not installed."""

from natf_bsd.cli import main

main(prog_name="natf")
