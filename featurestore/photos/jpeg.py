"""Whether the scan of a JPEG holds all that its header promises.

Pillow drops the decoder's warnings and leaves what is lost grey. simplejpeg raises them, also while
it decodes at an eighth of the size, which costs less than Pillow's decoding. Pixels are Pillow's
all the same.
"""

import re

import numpy as np

UNCHECKED = (
    "simplejpeg is not installed: JPEGs are not checked for damage inside the picture, which "
    "Pillow leaves grey without a word; `pip install simplejpeg` adds the check"
)
# APP0 and APP14: only how colour is coded, of which decoders warn without damage
COLOUR = (0xE0, 0xEE)
# libjpeg's jerror.h; its other warnings are of odd headers, which lose nothing
DAMAGE = ("Corrupt JPEG data: ", "Premature end of JPEG file", "Inconsistent progression sequence")
LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
BLOCK = 32  # pixels; the widest unit of a scan, of 4:1:1 colour
LEAST_ROWS = 8


def can_check() -> bool:
    """Whether simplejpeg is here; a bundle predicts without."""
    try:
        import simplejpeg  # noqa: F401
    except ImportError:
        return False
    return True


def scan_warning(jpeg: bytes) -> str | None:
    """The decoder's first warning of damage inside a JPEG's scan, else None.

    None also without simplejpeg.

    Raises MemoryError where memory is short.
    """
    if not can_check():
        return None
    from simplejpeg import decode_jpeg

    try:
        decode_jpeg(jpeg, min_height=1, min_width=1, min_factor=8, fastdct=True, fastupsample=True)
    except ValueError as err:
        text = str(err)
        if text.startswith("Insufficient memory"):
            raise MemoryError(text) from err
        return text.removeprefix(DAMAGE[0]) if text.startswith(DAMAGE) else None
    return None


def tell_damage(jpeg: bytes, warning: str, pixels_HWC: np.ndarray) -> str | None:
    """What a warning means for a picture, in words.

    None where only padding follows the scan, as some cameras write it.
    """
    height = len(pixels_HWC)
    start, stop = _flat_rows(pixels_HWC)
    if _is_padding(jpeg, warning) and stop < height:
        return None
    told = f"damaged inside the picture ({warning})"
    if stop - start < LEAST_ROWS:
        return told
    rows = (
        f"from row {start} of {height} on"
        if stop == height
        else f"in rows {start} to {stop} of {height}"
    )
    return f"{told}; about {(stop - start) / height:.0%} of it is flat, {rows}"


def _is_padding(jpeg: bytes, warning: str) -> bool:
    """Whether what is left over at the end is one byte again and again.

    Never of a progressive JPEG: no camera writes those, and of zeros in its last scan the same is
    left.
    """
    found = LEFT_OVER.fullmatch(warning)
    scan = jpeg.find(b"\xff\xda")
    if not found or b"\xff\xc2" in jpeg[:scan]:
        return False
    end = jpeg.find(b"\xff\xd9", scan)
    left_over = jpeg[end - int(found[1]) : end]
    return len(set(left_over)) == 1


def _flat_rows(pixels_HWC: np.ndarray) -> tuple[int, int]:
    """Start and stop of the longest run of rows that show the same block over and over.

    (0, 0) if there is none.

    So look rows without data, and rows of zeros.
    """
    # not the edges, where colour is blurred otherwise
    inner_HWC = pixels_HWC[:, BLOCK:-BLOCK].astype(np.int16)
    if inner_HWC.shape[1] <= BLOCK:
        return 0, 0
    change_HWC = np.abs(inner_HWC[:, BLOCK:] - inner_HWC[:, :-BLOCK])
    is_flat_H = change_HWC.reshape(len(pixels_HWC), -1).max(1) <= 1
    edges = np.flatnonzero(np.diff(is_flat_H, prepend=False, append=False))
    runs = edges.reshape(-1, 2)  # starts and stops take turns
    if not len(runs):
        return 0, 0
    start, stop = runs[np.argmax(runs[:, 1] - runs[:, 0])]
    return int(start), int(stop)
