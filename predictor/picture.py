"""One photograph as a picture to look at: what it shows, where heads see mass in it, and the numbers. Pillow and NumPy alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont, ImageOps

from trainer.metrics import MASSES, TARGETS

LONGEST = 1200  # pixels of a photograph's longer side
LEAST = 600  # smaller ones are enlarged: the words around them need room
MARGIN, GAP, BAR = 28, 20, 14
INK, MUTED, PAPER, RULE = (24, 26, 27), (92, 98, 102), (255, 255, 255), (216, 220, 222)
OPAQUE = 0.72  # of the map over the photograph's grays: what grows there stays visible
NAMES = {"Dry_Total_g": "Total", "GDM_g": "GDM", "Dry_Green_g": "Green", "Dry_Dead_g": "Dead", "Dry_Clover_g": "Clover"}
"""What people call each mass, in the order they read them."""

# Ten evenly spaced colours of inferno, perceptually uniform. Source: van der Walt and Smith 2015, matplotlib's colormaps.
_ANCHORS = ("000004", "1b0c42", "4b0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9a06", "f7d03c", "fcffa4")
_ANCHOR_A3 = np.array([[int(text[i:i + 2], 16) for i in (0, 2, 4)] for text in _ANCHORS], float)


@dataclass(frozen=True)
class Map:
    """values_HWM over a grid that covers the photograph.

    grams : of the 5 MASSES in every patch, whose sums are the heads' raw masses; share : of what heads look at, summing to 1.
    """

    unit: Literal["grams", "share"]
    values_HWM: np.ndarray

    @property
    def caption(self) -> str:
        height, width = self.values_HWM.shape[:2]
        if self.unit == "share":
            return f"Where the heads looked, not grams: 1 is an even look at all {width} x {height} patches"
        return f"Grams of Total in each of {width} x {height} patches, as the heads that count grams see them"

    def layer(self, name: str) -> np.ndarray:
        """(H, W) grams per patch of a mass; or how many times an even look each patch gets."""
        if self.unit == "grams":
            return self.values_HWM[..., MASSES.index(name)]
        return self.values_HWM[..., 0] * self.values_HWM[..., 0].size


def colours(share: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 of shares in [0, 1] of a scale: black, purple, orange, yellow."""
    at = np.linspace(0, 1, len(_ANCHOR_A3))
    return np.stack([np.interp(share, at, channel) for channel in _ANCHOR_A3.T], -1).round().astype(np.uint8)


def overlay(photograph: Image.Image, layer_HW: np.ndarray, top: float) -> Image.Image:
    """The photograph in grays under a map's colours, every patch a rectangle where it lies; `top` is the last colour."""
    painted = Image.fromarray(colours(np.clip(layer_HW / top, 0, 1))).resize(photograph.size, Image.Resampling.NEAREST)
    return Image.blend(ImageOps.autocontrast(photograph.convert("L"), 1).convert("RGB"), painted, OPAQUE)


def scale_top(layer_HW: np.ndarray) -> float:
    """Where the scale ends: 1 patch in 200 may lie beyond it, so that a single bright one does not darken all others."""
    top = float(np.quantile(layer_HW, 0.995))
    return top if top > 0 else 1.0


def fitted(pixels_HW3: np.ndarray) -> Image.Image:
    """The photograph with its longer side between LEAST and LONGEST pixels."""
    image = Image.fromarray(pixels_HW3)
    longer = max(image.size)
    ratio = min(max(longer, LEAST), LONGEST) / longer
    size = [max(1, round(side * ratio)) for side in image.size]
    return image.resize(size, Image.Resampling.LANCZOS if ratio < 1 else Image.Resampling.BICUBIC, reducing_gap=3.0)


def blank(message: str) -> Image.Image:
    """What stands where a photograph cannot be shown."""
    image = Image.new("RGB", (LEAST, LEAST // 4), (238, 240, 241))
    _words(ImageDraw.Draw(image), (MARGIN, MARGIN), message, 18, MUTED, LEAST - 2 * MARGIN)
    return image


def draw_picture(photograph: Image.Image, seen: Map | None, row: pd.Series, note: str = "") -> Image.Image:
    """Numbers on top, then photograph and map one under the other (beside, if it is tall), then the parts of a gram map.

    row : of `Combiner.table`, with `TARGET_low` and `TARGET_high` where there are intervals. note : said under the id.
    """
    blocks = [_panel(photograph, "Photograph")]
    if seen is not None:
        blocks.append(_mapped(photograph, seen, "Dry_Total_g", seen.caption))
    tall = photograph.height > 0.8 * photograph.width
    body = _beside(blocks) if tall else _below(blocks)
    if seen is not None and seen.unit == "grams":
        third = (body.width - 2 * GAP) // 3
        small = photograph.resize((third, max(1, round(photograph.height * third / photograph.width))), reducing_gap=3.0)
        parts = ("Dry_Green_g", "Dry_Dead_g", "Dry_Clover_g")
        body = _below([body, _beside([_mapped(small, seen, name, NAMES[name]) for name in parts])])
    head = _numbers(row, note, max(body.width, LEAST))
    return ImageOps.expand(_below([head, body]), MARGIN, PAPER)


def draw_thumbnail(photograph: Image.Image, seen: Map | None, side: int) -> Image.Image:
    """Photograph and map next to each other, for a table."""
    small = photograph.copy()
    small.thumbnail((side, side), reducing_gap=3.0)
    if seen is None:
        return small
    layer = seen.layer("Dry_Total_g")
    both = Image.new("RGB", (2 * small.width, small.height))
    both.paste(small, (0, 0))
    both.paste(overlay(small, layer, scale_top(layer)), (small.width, 0))
    return both


def _numbers(row: pd.Series, note: str, width: int) -> Image.Image:
    """The id, and the five masses with their spread and interval."""
    image = Image.new("RGB", (width, 172 if note else 146), PAPER)
    draw = ImageDraw.Draw(image)
    _words(draw, (0, 0), str(row["image_id"]), 26, INK, width)
    if note:
        _words(draw, (0, 34), note, 16, (170, 60, 20), width)
    for k, (name, title) in enumerate(NAMES.items()):
        x, y, room = k * width // len(NAMES), image.height - 104, width // len(NAMES) - 8
        draw.line([(x, y - 8), (x + room, y - 8)], RULE, 1)
        _words(draw, (x, y), title, 16, MUTED, room)
        _words(draw, (x, y + 20), f"{row[name]:.1f} g", 28 if width > 800 else 22, INK, room)
        _words(draw, (x, y + 56), f"± {row[f'{name}_sd']:.1f}", 17, MUTED, room)
        if f"{name}_low" in row:
            _words(draw, (x, y + 78), f"{row[f'{name}_low']:.1f} to {row[f'{name}_high']:.1f}", 17, MUTED, room)
    return image


def _panel(picture: Image.Image, caption: str) -> Image.Image:
    image = Image.new("RGB", (picture.width, picture.height + 26), PAPER)
    _words(ImageDraw.Draw(image), (0, 0), caption, 17, INK, picture.width)
    image.paste(picture, (0, 26))
    return image


def _mapped(photograph: Image.Image, seen: Map, name: str, caption: str) -> Image.Image:
    """A map over the photograph, and its scale."""
    layer = seen.layer(name)
    top = scale_top(layer)
    painted = _panel(overlay(photograph, layer, top), caption)
    return _below([painted, _scale(painted.width, seen, layer, top)], 8)


def _scale(width: int, seen: Map, layer_HW: np.ndarray, top: float) -> Image.Image:
    """Colours from 0 to top, what they mean, and what the patches sum to."""
    image = Image.new("RGB", (width, BAR + 24), PAPER)
    draw = ImageDraw.Draw(image)
    length = min(width, 420)
    image.paste(Image.fromarray(np.tile(colours(np.linspace(0, 1, length)), (BAR, 1, 1))), (0, 0))
    beyond = "≥ " if layer_HW.max() > top * 1.0001 else ""
    unit = " g a patch" if seen.unit == "grams" else " times an even look"
    last = f"{beyond}{top:.3g}{unit}"
    draw.text((0, BAR + 3), "0", MUTED, _font(15))
    draw.text((length, BAR + 3), last, MUTED, _font(15), anchor="ra")
    if seen.unit == "grams":
        total = f"sum {layer_HW.sum():.1f} g"
        beside = width > length + 140
        draw.text((length + 16, -1) if beside else (length / 2 - 20, BAR + 3), total, INK, _font(16 if beside else 15),
                  anchor="la" if beside else "ma")
    return image


def _below(blocks: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    image = Image.new("RGB", (max(b.width for b in blocks), sum(b.height + gap for b in blocks) - gap), PAPER)
    y = 0
    for block in blocks:
        image.paste(block, (0, y))
        y += block.height + gap
    return image


def _beside(blocks: Sequence[Image.Image]) -> Image.Image:
    image = Image.new("RGB", (sum(b.width + GAP for b in blocks) - GAP, max(b.height for b in blocks)), PAPER)
    x = 0
    for block in blocks:
        image.paste(block, (x, 0))
        x += block.width + GAP
    return image


def _words(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, ink: tuple[int, int, int], room: int) -> None:
    """One line of text, cut where it would leave its room."""
    font, shown = _font(size), " ".join(text.split())
    while font.getlength(shown) > room and len(shown) > 1:
        shown = shown[:-2].rstrip() + "…"
    draw.text(at, shown, ink, font)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


assert set(NAMES) == set(TARGETS)
