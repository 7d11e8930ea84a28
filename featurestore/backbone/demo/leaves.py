"""Leaves in the frame of a drawn photograph: where they stand, how large they are, their colours.

Lengths are in centimetres. What a photograph holds, and how it is painted, is `drawing`'s.
"""

from dataclasses import dataclass

import numpy as np

# the contest's quadrat is 70 x 30 cm; ours fills the 2:1 picture
QUADRAT_CM = np.array([70.0, 35.0])
MARGIN_CM = 4.0  # leaves are sown beyond the frame too: its edge is as dense as its middle
LEAFLET = (56, 128, 62)
LEAFLET_CM = 1.2
LEAFLET_E2 = np.array(  # a heart, from its stalk outwards, one unit long
    [
        [0, 0],
        [0.45, -0.36],
        [0.85, -0.42],
        [1, -0.18],
        [0.9, 0],
        [1, 0.18],
        [0.85, 0.42],
        [0.45, 0.36],
    ]
)
RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Layer:
    """Leaves of one kind.

    Outlines (S, E, 2) in cm, colours (S, 3) in 0-255, level in the canopy (S,), 0 = ground.
    """

    outline_SE2: np.ndarray
    rgb_S3: np.ndarray
    level_S: np.ndarray


def area_cm2(layer: Layer) -> float:
    """Area of the leaves whose middle lies in the frame; hidden parts count."""
    middle_S2 = layer.outline_SE2.mean(1)
    inside_S = ((middle_S2 >= 0) & (middle_S2 < QUADRAT_CM)).all(1)
    return float(leaf_cm2(layer.outline_SE2[inside_S]).sum())


def leaf_cm2(outline_SE2: np.ndarray) -> np.ndarray:
    """Area (S,) of each leaf, by the shoelace formula."""
    x_SE, y_SE = np.moveaxis(outline_SE2, -1, 0)
    next_x_SE = np.roll(x_SE, -1, 1)
    next_y_SE = np.roll(y_SE, -1, 1)
    doubled_S = (x_SE * next_y_SE - y_SE * next_x_SE).sum(1)
    return np.abs(doubled_S) / 2


def sow_blades(
    rng: np.random.Generator,
    sown_cm2: float,
    length_cm: float,
    width_cm: float,
    rgb: RGB,
    levels: tuple[float, float],
) -> Layer:
    """Bent, tapering blades, about so much area of them in the frame."""
    # 0.73 is the share of its length by width that a tapering blade covers
    n = _n_leaves(rng, sown_cm2, 0.73 * length_cm * width_cm)
    length_S = length_cm * rng.lognormal(-0.06, 0.35, n)  # of mean length_cm
    half_S = width_cm / 2 * rng.lognormal(-0.03, 0.25, n)
    along_5 = np.array([-0.5, -0.25, 0, 0.25, 0.5])
    taper_5 = np.array([0.8, 1, 0.95, 0.65, 0])

    heading_S1 = rng.uniform(0, 2 * np.pi, (n, 1))
    bend_S1 = rng.normal(0, 0.5, (n, 1))
    turn_S5 = heading_S1 + bend_S1 * along_5
    way_S52 = np.stack([np.cos(turn_S5), np.sin(turn_S5)], -1)

    middle_S12 = scatter(rng, n)[:, None]
    spine_S52 = middle_S12 + length_S[:, None, None] * along_5[:, None] * way_S52
    across_S52 = way_S52[..., ::-1] * [-1, 1]  # a quarter turn
    width_S51 = (half_S[:, None] * taper_5)[..., None]
    side_S52 = across_S52 * width_S51
    # up one side and down the other; the tip has no width, so it is there once
    up_SE2 = spine_S52 + side_S52
    down_SE2 = (spine_S52 - side_S52)[:, 3::-1]
    outline_SE2 = np.concatenate([up_SE2, down_SE2], 1)
    return Layer(outline_SE2, tint(rng, n, rgb), rng.uniform(*levels, n))


def sow_clover(rng: np.random.Generator, sown_cm2: float, levels: tuple[float, float]) -> Layer:
    """Clover leaves of three leaflets each, about so much area of them in the frame."""
    n = _n_leaves(rng, sown_cm2, 3 * 0.525 * LEAFLET_CM**2)
    size_S = LEAFLET_CM * rng.lognormal(-0.04, 0.2, n)  # whose squares, the areas, have that mean

    heading_S1 = rng.uniform(0, 2 * np.pi, (n, 1))
    apart_3 = np.radians([0, 120, 240])
    turn_S3 = heading_S1 + apart_3 + rng.normal(0, 0.1, (n, 3))
    cos_S3 = np.cos(turn_S3)
    sin_S3 = np.sin(turn_S3)
    rotate_S34 = np.stack([cos_S3, -sin_S3, sin_S3, cos_S3], -1)
    rotate_S322 = rotate_S34.reshape(n, 3, 2, 2)

    turned_S3E2 = np.einsum("slij,ej->slei", rotate_S322, LEAFLET_E2)
    leaflet_S3E2 = turned_S3E2 * size_S[:, None, None, None]
    placed_S3E2 = leaflet_S3E2 + scatter(rng, n)[:, None, None]
    outline_SE2 = placed_S3E2.reshape(-1, *LEAFLET_E2.shape)
    rgb_S3 = np.repeat(tint(rng, n, LEAFLET), 3, 0)  # one leaf's leaflets share it
    return Layer(outline_SE2, rgb_S3, np.repeat(rng.uniform(*levels, n), 3))


def _n_leaves(rng: np.random.Generator, sown_cm2: float, leaf_cm2: float) -> int:
    """Leaves to sow, frame and margin together."""
    frame_and_margin = (QUADRAT_CM + 2 * MARGIN_CM).prod() / QUADRAT_CM.prod()
    return rng.poisson(sown_cm2 * frame_and_margin / leaf_cm2)


def scatter(rng: np.random.Generator, n: int) -> np.ndarray:
    """Places (n, 2) in cm, frame and margin: most anywhere, some around tussocks."""
    low, span = -MARGIN_CM, QUADRAT_CM + 2 * MARGIN_CM
    anywhere_S2 = rng.uniform(0, span, (n, 2))
    tussock_T2 = rng.uniform(0, span, (30, 2))
    own_S2 = tussock_T2[rng.integers(0, 30, n)]
    near_S2 = own_S2 + rng.normal(0, 4, (n, 2))
    near_S2 %= span  # what falls out on one side comes in on the other
    is_anywhere_S1 = rng.random((n, 1)) < 0.85
    return low + np.where(is_anywhere_S1, anywhere_S2, near_S2)


def tint(rng: np.random.Generator, n: int, rgb: RGB) -> np.ndarray:
    """Colours (n, 3) around one: lighter or darker, yellower or bluer."""
    light_S1 = rng.normal(1, 0.12, (n, 1))
    yellow_S1 = rng.normal(0, 0.06, (n, 1))
    hue_S3 = 1 + yellow_S1 * [1, 0.2, -1]
    return np.clip(np.array(rgb) * light_S1 * hue_S3, 0, 255)
