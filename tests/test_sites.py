"""featurestore.photos.sites: one visit is one site however it is spelled, and what cannot be told
for certain is refused or named."""

import numpy as np
import pandas as pd
import pytest

from featurestore.errors import InputError
from featurestore.photos.columns import tidied, tidy
from featurestore.photos.sites import count_sites, doubts_about_sites, site_of


def visits(*dates, states=None):
    """A catalog of one image a date."""
    return pd.DataFrame(
        {
            "image_id": [f"ID{i}" for i in range(len(dates))],
            "State": states or ["Tas"] * len(dates),
            "Sampling_Date": list(dates),
        }
    )


def test_site_is_state_and_date():
    assert site_of(visits("2015/9/4", "2015/9/4", states=["Tas", "Vic"])).tolist() == [
        "Tas_2015/9/4",
        "Vic_2015/9/4",
    ]


@pytest.mark.parametrize(
    "spelled",
    [
        "2015/7/21",
        "2015/07/21",
        "2015-07-21",
        "2015.7.21 ",
        "2015:07:21",
        "2015_07_21",
        "20150721",
        20150721.0,
        "21/7/2015",
        "7/21/2015",
        "21.07.2015",
        "21 July 2015",
        "21-JUL-2015",
        "21st jul 2015",
        "July 21, 2015",
    ],
)
def test_K2_a_date_is_one_however_it_is_spelled(spelled):
    assert site_of(visits(spelled)).tolist() == ["Tas_2015/7/21"]


@pytest.mark.parametrize(
    "time",
    [
        " 10:00",
        " 10:00:07",
        "T10:00:07",
        " 10:00:07.123",
        "T10:00Z",
        "T10:00:07+10:00",
        " 9:05 am",
        " 10:00 UTC",
        "  23:59:59",
    ],
)
@pytest.mark.parametrize("day", ["2015-07-21", "21/7/2015"])
def test_K2_a_time_behind_a_date_is_cut_off(day, time):
    assert site_of(visits(day + time)).tolist() == ["Tas_2015/7/21"]


@pytest.mark.parametrize("digits", ["20150721T100007", "20150721100007", 20150721100007.0])
def test_K2_a_time_in_digits_is_cut_off_too(digits):
    assert site_of(visits(digits)).tolist() == ["Tas_2015/7/21"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("2015/21/7", "2015/21/7"),
        ("2015/7-21", "2015/7-21"),
        ("99999999", "99999999"),
        ("autumn", "autumn"),
        ("21/7/15", "21/7/15"),
        ("31/2/2015", "31/2/2015"),
        ("03/04/2015", "3/4/2015"),
        ("3.4.2015 10:00", "3/4/2015"),
        ("week  7", "week 7"),
        (7.0, "7"),
        ("12 foo 2015", "12 foo 2015"),
    ],
)
def test_other_text_is_taken_as_it_is(text, name):
    assert site_of(visits(text)).tolist() == [f"Tas_{name}"]


def test_K2_letter_case_of_state_and_date_makes_no_other_site():
    frame = visits(
        "Autumn",
        "autumn",
        "AUTUMN",
        "2015/7/21",
        "21 JUL 2015",
        states=["NSW", "nsw", "Nsw", "nsw ", "NSW"],
    )
    assert site_of(frame).tolist() == ["NSW_AUTUMN"] * 3 + ["NSW_2015/7/21"] * 2


def test_sites_do_not_depend_on_the_order_of_images():
    frame = visits(
        "Autumn", "autumn", "2015/7/21", "21/7/2015", states=["tas", "Tas", "TAS", "tas"]
    )
    assert site_of(frame[::-1])[::-1].tolist() == site_of(frame).tolist()


@pytest.mark.parametrize("beside", ["2015-04-03", "2015/3/4", "3 April 2015", "2015-04-03 10:00"])
def test_K2_a_day_and_month_that_could_be_swapped_are_refused(beside):
    frame = visits("03/04/2015", "03/04/2015", "2015/9/9", beside)
    with pytest.raises(
        InputError,
        match=r"dates could be swapped.*as 2015-07-21 .*:\n  03/04/2015 \(ID0 and 1 more\)",
    ):
        site_of(frame)
    assert count_sites(frame) is None and "03/04/2015" in doubts_about_sites(frame)[0]


def test_K2_swapped_dates_are_refused_where_both_orders_are_there():
    with pytest.raises(
        InputError,
        match=r"dates could be swapped(?s:.*)\n  3/4/2015 \(ID0\) beside 4/3/2015\n  4/3/2015",
    ):
        site_of(visits("3/4/2015", "4/3/2015", "21/7/2015", "7/21/2015"))


@pytest.mark.parametrize("evident", ["21/7/2015", "7/21/2015", "4/4/2015"])
def test_a_column_written_in_one_order_is_taken(evident):
    frame = visits("3/4/2015", "4/3/2015", "03/04/2015", evident)
    assert site_of(frame).tolist()[:3] == ["Tas_3/4/2015", "Tas_4/3/2015", "Tas_3/4/2015"]
    assert doubts_about_sites(frame) == []


@pytest.mark.parametrize(
    "pair",
    [
        ("21/7/15", "2015/7/21"),
        ("2015/21/7", "2015/7/21"),
        ("autumn-1", "Autumn 1"),
        ("3.4.15", "3/4/15"),
        ("21 Jul 15", "21/7/15"),
    ],
)
def test_K2_dates_that_look_alike_are_named(pair):
    frame = visits(*pair, "2015/9/9")
    *_, said = doubts_about_sites(frame)
    assert (
        count_sites(frame) == 3
        and all(f"Tas_{date}" in said for date in pair)
        and "(1 pair)" in said
    )


def test_texts_among_dates_are_named_and_stay_sites_of_their_own():
    """A date in another form is none of them: it is the same day."""
    frame = visits("2015/9/19", "19.09.2015", "yesterday", "3/4/2015", "31/2/2015")
    (said,) = doubts_about_sites(frame)
    assert said.endswith(":\n  ID2: 'yesterday'\n  ID4: '31/2/2015'")
    assert said.startswith("Sampling_Date: 2 of 5 cells are no dates")
    assert site_of(frame).tolist()[:3] == ["Tas_2015/9/19", "Tas_2015/9/19", "Tas_yesterday"]
    # a column of texts is meant so
    assert doubts_about_sites(visits("autumn", "spring", "2015/7/21")) == []


@pytest.mark.parametrize(
    "states",
    [
        ("NSW", "N.S.W."),
        ("NSW", "New South Wales"),
        ("Tas", "Tasmania"),
        ("WA", "Western Australia"),
        ("Qld", "Queensland"),
    ],
)
def test_K2_states_that_look_alike_are_named(states):
    (said,) = doubts_about_sites(visits("2015/7/21", "2015/7/21", states=list(states)))
    assert all(f"{state}_2015/7/21" in said for state in states)


@pytest.mark.parametrize(
    "frame",
    [
        # certain dates of the same numbers are different days
        visits("2015/3/4", "2015/4/3", "2014/3/4", "2003/4/15"),
        visits("3/4/15", "4/3/15"),  # and so are dates written in one way
        visits(*["2015/7/21"] * 6, states=["Tas", "Vic", "NSW", "WA", "SA", "NT"]),
        visits("plot 1", "plot 12", "plot 2"),
        visits("2015/7/21", "2015/7/22", states=["Tas", "Tasmania"]),  # another day
        visits("2015/7/21").drop(columns="State"),
    ],
    ids=["certain", "one way", "states", "numbers", "other day", "no State"],
)
def test_sites_that_are_different_are_not_said_to_look_alike(frame):
    assert doubts_about_sites(frame) == []


def test_sites_are_counted_where_they_are_known():
    assert count_sites(visits("2015/7/21", "2015-07-21", "2015/7/22")) == 2
    assert count_sites(visits("2015/7/21").drop(columns="Sampling_Date")) is None
    assert count_sites(visits("2015/7/21", np.nan)) is None


@pytest.mark.parametrize(
    "column",
    [
        pd.Series([" a  b", "a b", "1.0", "", "a b"], dtype=object),
        pd.Series([1.0, np.nan, 2.5]),
        pd.Series([1, "1", 1.0, True, None], dtype=object),
    ],
    ids=["texts", "numbers", "both"],
)
def test_a_column_is_tidied_as_each_of_its_cells_is(column):
    """Texts once each; 1, 1.0 and True are one key of a dict, and other texts."""
    assert tidied(column).tolist() == [tidy(cell) for cell in column]
