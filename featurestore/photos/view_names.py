"""Names of views, and which of them a user means. What a view does to a tile is in `views`."""

from collections.abc import Mapping

from featurestore.errors import InputError

FLIPS: Mapping[str, tuple[bool, bool]] = {
    "": (False, False),
    "hflip": (True, False),
    "vflip": (False, True),
    "hvflip": (True, True),
}
COLOURS: Mapping[str, tuple[float, ...]] = {
    "": (),
    "brightness": (0.2,),  # factor 1 +- 0.2
    "contrast": (0.2,),
    "hsv": (10 / 180, 20 / 255, 20 / 255),  # added to hue (of a full circle), saturation and value
    "gamma": (0.2,),  # exponent 1 +- 0.2
}


def view_name(flip: str, colour: str, transpose: bool = False) -> str:
    """`hflip_hsv`; `plain` where nothing is done."""
    parts = ("transpose" if transpose else "", flip, colour)
    return "_".join(part for part in parts if part) or "plain"


VIEW_NAMES = tuple(view_name(flip, colour) for colour in COLOURS for flip in FLIPS)
"""The twenty views of the experiment this project starts from; the four plain flips come first."""
TRANSPOSE_NAMES = tuple(view_name(flip, "", transpose=True) for flip in FLIPS)
"""The other four symmetries of a square, for prediction with eight views."""


def chosen_names(text: str, where: str = "views") -> tuple[str, ...]:
    """Views from what a user types: a number (the first so many), or names with commas.

    where : what the user calls it. InputError names them all.
    """
    if text.isdecimal() and 1 <= int(text) <= len(VIEW_NAMES):
        return VIEW_NAMES[: int(text)]
    names = tuple(name.strip() for name in text.split(","))
    if wrong := [name for name in names if name not in VIEW_NAMES]:
        raise InputError(
            f"{where}: {', '.join(wrong)!r} unknown; give a number from 1 to {len(VIEW_NAMES)} or "
            f"some of {', '.join(VIEW_NAMES)}"
        )
    if len(set(names)) < len(names):
        raise InputError(f"{where}: {text!r} names a view twice")
    return names


def first_tta_names(n: int, where: str = "tta") -> tuple[str, ...]:
    """Views of test-time augmentation, by their number.

    1 plain, 2 adds the horizontal flip, 4 all flips, 8 the transposes (square tiles).
    """
    if n not in (1, 2, 4, 8):
        raise InputError(
            f"{where} {n}: "
            "choose 1 (plain), 2 (and hflip), 4 (all flips) or 8 (all symmetries of a square)"
        )
    return (VIEW_NAMES[:4] + TRANSPOSE_NAMES)[:n]


def tta_names(tta: int | str, where: str = "tta") -> tuple[str, ...]:
    """Views of test-time augmentation from a number or from names with commas.

    A number as in `first_tta_names`; names may be of transposes.
    """
    if isinstance(tta, int) or tta.isdecimal():
        return first_tta_names(int(tta), where)
    known = VIEW_NAMES + TRANSPOSE_NAMES
    names = tuple(name.strip() for name in tta.split(","))
    unknown = [name for name in names if name not in known]
    twice = [name for name in names if names.count(name) > 1]
    if wrong := unknown or twice:
        raise InputError(
            f"{where}: {', '.join(map(repr, wrong))} unknown or twice; give 1, 2, 4, 8 or some of "
            f"{', '.join(known)}"
        )
    return names
