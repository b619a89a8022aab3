"""The commands: `python -m experiments.NAME`."""

import sys

from experiments import startup

# argv[0] is '-m' only while Python looks for the module that it was told to run: an import from a
# notebook or a test changes nothing.
if sys.argv[:1] == ["-m"]:
  startup.before_imports()
