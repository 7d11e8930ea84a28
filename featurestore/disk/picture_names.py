"""Names of files for pictures of images, whatever their ids are."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

NAME_BYTES = 120  # of a picture's name before its ending; file systems take 255


def picture_names(image_ids: Sequence[str]) -> dict[str, str]:
    """A file name for each id that no other has, whatever the case, and that every file system
    takes; the id where it can be."""
    names = {}
    taken = set()
    for image_id in image_ids:
        safe = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", image_id)).strip("._")
        safe = safe.encode()[:NAME_BYTES].decode(errors="ignore")  # not amid a letter
        if not safe or safe != image_id or safe.casefold() in taken:
            safe = f"{safe or 'image'}-{hashlib.sha256(image_id.encode()).hexdigest()[:16]}"
        taken.add(safe.casefold())
        names[image_id] = f"{safe}.png"
    return names
