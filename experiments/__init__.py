"""The commands: `python -m experiments.NAME`."""

import sys

from experiments import startup

# argv[0] is '-m' only while Python looks for the module of `python -m`. So the process is set up
# for a command, but not where a notebook or a test imports this package.
if sys.argv[:1] == ["-m"]:
  startup.before_imports()
