"""Views do to pixels what their names say, alone and again."""

import colorsys

import pytest
import torch

from featurestore.errors import InputError
from featurestore.photos.view_names import COLOURS, VIEW_NAMES
from featurestore.photos.views import (
    TRANSPOSES,
    VIEWS,
    choose_views,
    make_view,
    shift_hsv,
    tta_views,
    view_amounts,
)

TILES = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))


def test_twenty_views_plain_flips_first():
    names = [view.name for view in VIEWS]
    assert names == list(VIEW_NAMES) and len({*names}) == len(names)
    assert names[:5] == ["plain", "hflip", "vflip", "hvflip", "brightness"]
    assert names[19] == "hvflip_gamma"  # new ones come behind it


@pytest.mark.parametrize(
    "name, expected",
    [
        ("plain", TILES),
        ("hflip", TILES.flip(-1)),
        ("vflip", TILES.flip(-2)),
        ("hvflip", TILES.flip(-1, -2)),
        ("transpose_hflip", TILES.transpose(-1, -2).flip(-1)),
    ],
)
def test_flips_move_pixels_within_each_tile(name, expected):
    view = next(view for view in VIEWS + TRANSPOSES if view.name == name)
    assert torch.equal(make_view(TILES, view, []), expected)


@pytest.mark.parametrize("name", [colour for colour in COLOURS if colour])
def test_colour_views_change_colours_and_stay_in_range(name):
    view = next(view for view in VIEWS if view.name == name)
    x = make_view(TILES, view, view_amounts(view, 0, "ID1"))
    assert not torch.equal(x, TILES) and x.min() >= 0 and x.max() <= 1


def test_amounts_are_keyed_by_seed_image_and_view():
    hsv = next(view for view in VIEWS if view.name == "hsv")
    draws = view_amounts(hsv, 0, "ID1")
    assert draws == view_amounts(hsv, 0, "ID1")
    assert all(abs(d) <= a for d, a in zip(draws, hsv.amounts, strict=True))
    assert (
        len(
            {
                tuple(view_amounts(v, s, i))
                for v in VIEWS[12:16]
                for s in (0, 1)
                for i in ("ID1", "ID2")
            }
        )
        == 16
    )


def test_shift_hsv_is_colorsys():
    pixel = (0.2, 0.5, 0.3)
    h, s, v = colorsys.rgb_to_hsv(*pixel)
    expected = torch.tensor(colorsys.hsv_to_rgb(h + 0.05, s - 0.1, v + 0.07))
    got = shift_hsv(torch.tensor(pixel).view(3, 1, 1), 0.05, -0.1, 0.07).flatten()
    assert torch.allclose(got, expected, atol=1e-5)


def test_gray_stays_gray_when_saturation_is_added():
    gray = torch.full((3, 1, 1), 0.4)
    assert torch.allclose(shift_hsv(gray, 0.05, 0.08, 0.1), torch.full((3, 1, 1), 0.5), atol=1e-6)


@pytest.mark.parametrize("text, names", [("1", ["plain"]), ("vflip, gamma", ["vflip", "gamma"])])
def test_views_are_chosen_by_number_or_name(text, names):
    assert [view.name for view in choose_views(text)] == names


@pytest.mark.parametrize("text", ["0", str(len(VIEWS) + 1), "flip", "plain,plain", ""])
def test_views_that_are_not_there_are_refused(text):
    with pytest.raises(InputError, match="views"):
        choose_views(text)


def test_tta_counts():
    assert [view.name for view in tta_views(2)] == ["plain", "hflip"]
    with pytest.raises(InputError, match="1 .*2 .*4 .*8"):
        tta_views(3)
