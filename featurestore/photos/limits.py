"""How much work one photograph may make: pixels, parts of a file, and seconds of a processor.

A few bytes can ask for hours of decoding. What is bounded here cannot: a file is refused by name.
"""

import io
import time

MOST_SCANS = 100
"""Of a JPEG. Encoders write about ten; each may cost a pass over all pixels, and a few bytes."""
MOST_PARTS = 1 << 20
"""Segments or chunks of a file, and stray bytes between two of them."""
MOST_S = 60.0
"""Seconds of a processor for one photograph; 100 megapixels take about two."""


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """ValueError unless a picture has pixels, and no more than these."""
    if not 0 < width * height <= max_pixels:
        raise ValueError(
            f"{width} x {height} pixels; between 1 and {max_pixels:,} are read; "
            "shrink it, or raise --max-pixels"
        )


def check_parts(n: int) -> None:
    """ValueError for a file in too many pieces."""
    if n > MOST_PARTS:
        raise ValueError(f"more than {MOST_PARTS:,} parts in its headers; export it again")


class TimedBytes(io.BytesIO):
    """A file's bytes, given out for as long as their decoding may take.

    Decoders ask for more bytes again and again. The clock is that of the thread, so a busy machine
    takes nothing away. Raises ValueError when the time is over.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._end_s = time.thread_time() + MOST_S

    def read(self, size: int | None = -1) -> bytes:
        if time.thread_time() > self._end_s:
            raise ValueError(
                f"more than {MOST_S:g} seconds of decoding; export it again, not progressive"
            )
        return super().read(size)
