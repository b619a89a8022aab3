"""Errors that say "this is about your input": a command prints their message and no traceback.

All derive from `UserError`. Any other exception, a plain ValueError included, is a bug of ours, and
a command lets its traceback through. So raise one of these where a config field, a flag, a file, a
checkpoint or the data cannot be used, with a message that says where, what was found and what was
expected or how to mend it; and a plain ValueError where a caller in Python passes what a function
cannot take (shapes that do not fit, a share above 1).
"""


class UserError(Exception):
  """Something that the user can mend. The message is all that a command prints of it."""


class InputError(UserError, ValueError):
  """A config field, a flag, a file or the data is not as it must be."""


class InUseError(InputError):
  """Another process is at work in this folder."""


class ReadError(UserError, OSError):
  """A file or folder, local or on a remote storage, cannot be read."""


class MissingFileError(ReadError, FileNotFoundError):
  """There is no such file or folder."""
