"""Counts in words, as messages have them."""


def count_of(n: int, noun: str, total: int | None = None) -> str:
    """`1 image`, `2 masses`, `1 of 9 images`."""
    of_many = n if total is None else total
    ending = "es" if noun.endswith("s") else "s"
    words = noun if of_many == 1 else noun + ending
    return f"{n} {words}" if total is None else f"{n} of {total} {words}"


def for_count(n: int, of_one: str, of_several: str) -> str:
    """What agrees with a count: `is` or `are`."""
    return of_one if n == 1 else of_several
