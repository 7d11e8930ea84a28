"""The access token: made up, or kept in a file over restarts of the server."""

import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from featurestore.errors import InputError, UsageError

TOKEN = re.compile(r"[\w-]{16,}", re.ASCII)
EXPECTED = "16 or more letters, digits, - or _ were expected"


def new_token() -> str:
    """32 letters that nobody guesses."""
    return secrets.token_urlsafe(24)


def check_token(token: str) -> None:
    """UsageError for a token that is easy to guess or does not fit an address."""
    if not TOKEN.fullmatch(token):
        raise UsageError(
            f"the token (--token or BIOMASS_TOKEN): {EXPECTED}; without it one is made up"
        )


def kept_token(path: Path) -> str:
    """The token in a file. A file that is not there is made, for its owner alone, with a new token.

    InputError for a file that cannot be read or made, or holds no token.
    """
    try:
        if not path.exists():
            with suppress(FileExistsError):  # by another server that starts now
                _create(path)
        text = path.read_text(errors="replace").strip()
    except OSError as err:
        raise InputError(
            f"--token-file {path}: {err.strerror or err}; give a file that this account may read, "
            "or a new one in a folder where it may write"
        ) from err
    if not TOKEN.fullmatch(text):
        raise InputError(
            f"--token-file {path}: {EXPECTED} and nothing else; remove the file for a new token"
        )
    return text


def is_private(path: Path) -> bool:
    """Whether the owner alone may read or write the file."""
    return not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)


def _create(path: Path) -> None:
    # never readable by others, not even for a moment
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{new_token()}\n")
