"""Durations, as plans and reports say them."""

import pytest

from featurestore.disk.durations import duration

HOUR = 3600


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.0123, "12 ms"),
        (0.0994, "99 ms"),
        (0.5, "0.5 s"),
        (9.36, "9.4 s"),
        (99.4, "99 s"),
        (99.6, "1.7 min"),
        (12 * 60, "12 min"),
        (99.4 * 60, "99 min"),
        (99.6 * 60, "1.7 h"),
        (3.4 * HOUR, "3.4 h"),
        (47.9 * HOUR, "48 h"),
        (60 * HOUR, "2.5 days"),
        (24 * HOUR * 123, "123 days"),
    ],
)
def test_a_duration_is_said_as_a_person_would(seconds, said):
    assert duration(seconds) == said
