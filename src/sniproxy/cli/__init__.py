"""The command line: the only part that prints, asks or exits.

`program` has the commands and what they share; each larger command has a module of its own.
"""

from sniproxy.cli.program import main

__all__ = ["main"]
