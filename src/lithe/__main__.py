"""`python -m lithe`: the command line, for launchers that start modules, such as `accelerate launch -m lithe`."""

from lithe.cli import main

main()
