"""The one family of errors a user can cause or must act on.

Anything else is a bug and stays a traceback.

    BiomassError                 exit code
      PartFailed                 1     a part's process ends without a result, each time
      UsageError                 2     the command or call cannot mean anything
      InputError                 3     a photograph, CSV, config or weights file is wrong
        NoAccessError            3     this account may not read or write a file
      StoreDamaged               4     a store's bytes are not what they were
      MismatchError              5     two things that must agree (backbone, dtype) do not
      LockedError                75    another process is writing here (EX_TEMPFAIL: try again)
      MemoryShortError           75    there is not enough memory for this at the moment
      NoThreadError              75    the system starts no further thread or process

6 (IN_PART) is no error: a part of the work could not be done, the rest is there.
A message says where, what was found, what was expected and what to do.
"""

import errno
import os

IN_PART = 6
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What an OSError says where a disk, a quota or a limit is full."""


class BiomassError(Exception):
    """Anything the user can put right; `exit_code` is what the command line returns for it."""

    exit_code = 1


class PartFailed(BiomassError):
    exit_code = 1


class UsageError(BiomassError):
    exit_code = 2


class InputError(BiomassError):
    exit_code = 3


class NoAccessError(InputError):
    @classmethod
    def of(cls, err: OSError, path: object = "", what: str = "read") -> "NoAccessError":
        """Of an error of the system, which names the file or leaves that to `path`."""
        place, why = err.filename or path, os.strerror(err.errno)
        return cls(
            f"{place}: {why}: this account may not {what} it; ask its owner for access, or use "
            "another account"
        )


class StoreDamaged(BiomassError):
    exit_code = 4


class MismatchError(BiomassError):
    exit_code = 5


class LockedError(BiomassError):
    exit_code = 75


class MemoryShortError(BiomassError):
    exit_code = 75


class NoThreadError(BiomassError):
    exit_code = 75


def list_some(items: list[str], most: int = 20) -> str:
    """The items one a line, indented; of more than `most` the rest is counted."""
    lines = [f"\n  {item}" for item in items[:most]]
    return "".join(lines) + (f"\n  ... and {len(items) - most} more" if len(items) > most else "")
