"""What the TAB key offers. Nothing here is imported from a package that takes long."""

import os
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from featurestore.photos.view_names import VIEW_NAMES

Complete = Callable[[click.Context, click.Parameter, str], list[str]]
"""An option's `shell_complete`."""


def offered(*words: str) -> Complete:
    """These words."""

    def complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def offered_views(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of views, after each comma again those that are not there yet."""
    before, comma, last = incomplete.rpartition(",")
    left = [name for name in VIEW_NAMES if name not in before.split(",")]
    return [before + comma + name for name in left if name.startswith(last)]


def offered_backbones(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """timm's models that can be used, as docs/backbones.md lists them."""
    names = Path(__file__).parent.parent / "backbone" / "names.txt"
    return [name for name in names.read_text().split() if name.startswith(incomplete)]


offered_devices = offered("auto", "cpu", "cuda")

PLAIN = {*string.ascii_letters, *string.digits, *"._-+=@"}
"""Characters of names that no shell has to quote."""


class NoLocks(click.Path):
    """A path; beside `features.h5` its lock is not offered."""

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,
        incomplete: str,
    ) -> list[CompletionItem]:
        by_the_shell = super().shell_complete(ctx, param, incomplete)
        folder, start = os.path.split(incomplete)
        try:
            found = [each for each in os.scandir(folder or ".") if each.name.startswith(start)]
        except OSError:  # no such folder, or `~`, which the shell knows
            return by_the_shell
        if not start:
            found = [each for each in found if not each.name.startswith(".")]
        kept = [each for each in found if not each.name.endswith(".lock")]
        # The shell's own list goes on into folders, and has locks in it. So it is ours where there
        # is one, but for a lone folder, behind which a shell would take the path for ended, and for
        # names that it would have to quote.
        is_lone_folder = len(kept) == 1 and _is_folder(kept[0])
        is_plain = all(set(each.name) <= PLAIN for each in kept)
        if len(kept) == len(found) or is_lone_folder or not is_plain:
            return by_the_shell
        names = sorted(each.name + "/" * _is_folder(each) for each in kept)
        return [CompletionItem(os.path.join(folder, name)) for name in names]


def _is_folder(entry: Any) -> bool:
    """To go on from: a Zarr store ends a path, as a file does."""
    return entry.is_dir() and not entry.name.endswith(".zarr")
