"""The Range header (RFC 9110, section 14): which bytes of a body are asked for."""

import re

from service.errors import ServiceError

MOST_RANGES = 16
RANGE = re.compile(r"(\d{0,19})-(\d{0,19})", re.ASCII)


def requested_ranges(header: str | None, n_bytes: int) -> list[tuple[int, int]] | None:
    """(start, end) of each range within n_bytes, as requested; None for the whole body.

    A header that is no Range of bytes is passed over, as the RFC wants it. ServiceError `range`
    (416) if no range can be satisfied, if there are more than MOST_RANGES, or if together they ask
    for more than the body has.
    """
    unit, _, text = (header or "").partition("=")
    specs = [RANGE.fullmatch(each.strip()) for each in text.split(",")]
    if unit.strip().lower() != "bytes" or not all(specs):
        return None
    for spec in specs:
        first, last = spec.groups()
        is_backwards = first and last and int(first) > int(last)
        if spec[0] == "-" or is_backwards:
            return None
    ranges = []
    for spec in specs:
        span = _span(spec[1], spec[2], n_bytes)
        if span:
            ranges.append(span)
    # many small or overlapping ranges would make a short request a long answer (RFC 9110, 17.15)
    overlap = len(ranges) > 1 and sum(b - a for a, b in ranges) > n_bytes
    if not ranges or len(specs) > MOST_RANGES or overlap:
        raise ServiceError(
            "range",
            f"no such ranges of {n_bytes} bytes, or more than {MOST_RANGES} of them, or "
            "overlapping ones",
            "ask for few ranges within the body",
            {"Content-Range": f"bytes */{n_bytes}"},
        )
    return ranges


def _span(first: str, last: str, n_bytes: int) -> tuple[int, int] | None:
    if not first:  # -N: the last N bytes, or all where there are fewer
        return (max(0, n_bytes - int(last)), n_bytes) if int(last) and n_bytes else None
    start = int(first)
    if start >= n_bytes:
        return None
    # both ends are meant to be sent: the last byte of A-B is B
    return start, min(int(last or n_bytes), n_bytes - 1) + 1
