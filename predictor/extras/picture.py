"""One photograph as a picture to look at: what it shows, where heads see mass in it, and the
numbers. Pillow and NumPy alone."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont, ImageOps

from predictor.extras.shown import PRESET, Shown, about_maps

LONGEST = 1200  # pixels of a photograph's longer side
LEAST = 600  # smaller ones are enlarged: the words around them need room
# grams over a photograph: if spread evenly, they have the last colour of a photograph with no more
LEAST_G = 10.0
MARGIN = 28
GAP = 20
BAR = 14
INK = (24, 26, 27)
MUTED = (92, 98, 102)
PAPER = (255, 255, 255)
RULE = (216, 220, 222)
WARNING = (170, 60, 20)
# of the photograph's light and dark in a map: what grows there stays visible, and the colours near
# the scale's
RELIEF = 0.4
COLUMNS = 5  # numbers beside each other
ROW_GAP = 24
BIG, SMALL = 28, 22  # of a number, in a wide and a narrow picture

# Ten evenly spaced colours of inferno, perceptually uniform. Source: van der Walt and Smith 2015,
# matplotlib's colormaps.
_ANCHORS = (
    "000004",
    "1b0c41",
    "4a0c6b",
    "781c6d",
    "a52c60",
    "cf4446",
    "ed6925",
    "fb9b06",
    "f7d13d",
    "fcffa4",
)
_ANCHOR_A3 = np.array(
    [[int(text[i : i + 2], 16) for i in (0, 2, 4)] for text in _ANCHORS],
    float,
)


@dataclass(frozen=True)
class Map:
    """values_HWM over a grid that covers the photograph.

    grams : of the numbers that heads predict, in their order, what they say of every patch. Those
        of an amount, a mass say, sum to the heads' raw prediction, and so do those of a level or
        share, which heads average over patches.
    share : of what heads look at, summing to 1.
    """

    unit: Literal["grams", "share"]
    values_HWM: np.ndarray
    shown: Shown = PRESET

    @property
    def caption(self) -> str:
        height, width = self.values_HWM.shape[:2]
        shown = self.shown
        if self.unit == "share":
            but = ", not grams" if shown.targets.preset else ""
            return (
                f"Where the heads looked{but}: 1 is an even look at all {width} x {height} patches"
            )
        name = shown.first.name
        told = shown.with_unit(name, self.told(name))
        if shown.first.kind == "amount":
            return (
                f"Where the head reads {shown.titles[name]} from: {told} over {width} x {height} "
                "patches"
            )
        return f"{name} as the head says it of each of {width} x {height} patches, mean {told}"

    def told(self, name: str) -> float:
        """What the heads say of the photograph."""
        return float(self._values(name).sum())

    @property
    def ends(self) -> tuple[float, float]:
        """What the first and last colour mean in all maps of a photograph, in the unit of `layer`.

        One scale for the first target and its parts: a mass that is nearly absent stays dark, and
        so does a photograph with less than LEAST_G. 1 patch in 200 may exceed it, so that one
        cannot darken all others. A level, which may be negative, has the photograph's own scale.
        """
        first = self.shown.first
        layer_HW = self.layer(first.name if first else "")
        top = float(np.quantile(layer_HW, 0.995))
        if self.unit == "share":
            return 0.0, max(top, 1.0)
        if first.kind == "share":
            return 0.0, 1.0
        if first.kind == "level":
            bottom = float(np.quantile(layer_HW, 0.005))
            return bottom, max(top, bottom + 1e-9)
        floor = LEAST_G / layer_HW.size if self.shown.unit(first.name) else 1e-9
        return 0.0, max(top, floor)

    def layer(self, name: str) -> np.ndarray:
        """(H, W) of a target: an amount per patch, or the level or share of each; or how many times
        an even look each patch gets."""
        if self.unit == "share":
            return self.values_HWM[..., 0] * self.values_HWM[..., 0].size
        values_HW = self._values(name)
        is_amount = self.shown.targets[name].kind == "amount"
        return values_HW if is_amount else values_HW * values_HW.size

    def _values(self, name: str) -> np.ndarray:
        names = [target.name for target in self.shown.targets.outputs]
        return self.values_HWM[..., names.index(name)]


def colours(share: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 of shares in [0, 1] of a scale: black, purple, orange, yellow."""
    at = np.linspace(0, 1, len(_ANCHOR_A3))
    channels = [np.interp(share, at, channel) for channel in _ANCHOR_A3.T]
    return np.stack(channels, -1).round().astype(np.uint8)


def overlay(
    photograph: Image.Image,
    layer_HW: np.ndarray,
    ends: tuple[float, float],
) -> Image.Image:
    """A map's colours with the photograph's relief, every patch a rectangle where it lies; `ends`
    are the first and the last colour."""
    bottom, top = ends
    share_HW = np.clip((layer_HW - bottom) / (top - bottom), 0, 1)
    painted = Image.fromarray(colours(share_HW)).resize(photograph.size, Image.Resampling.NEAREST)
    light_HW = np.asarray(ImageOps.autocontrast(photograph.convert("L"), 1), np.float32)
    # about its mean: the whole stays as bright as its colours
    relief_HW1 = RELIEF * (light_HW - light_HW.mean())[..., None]
    pixels_HW3 = np.clip(np.asarray(painted) + relief_HW1, 0, 255)
    return Image.fromarray(pixels_HW3.astype(np.uint8))


def fitted(image: Image.Image) -> Image.Image:
    """The photograph with its longer side between LEAST and LONGEST pixels."""
    longer = max(image.size)
    ratio = min(max(longer, LEAST), LONGEST) / longer
    size = [max(1, round(side * ratio)) for side in image.size]
    method = Image.Resampling.LANCZOS if ratio < 1 else Image.Resampling.BICUBIC
    # in two steps; from 3.0 on the result looks like that of one (Pillow's documentation)
    return image.resize(size, method, reducing_gap=3.0)


def blank(message: str) -> Image.Image:
    """What stands where a photograph cannot be shown."""
    image = Image.new("RGB", (LEAST, LEAST // 4), (238, 240, 241))
    _words(
        ImageDraw.Draw(image),
        (MARGIN, MARGIN),
        _plain(message),
        18,
        MUTED,
        LEAST - 2 * MARGIN,
    )
    return image


def draw_picture(
    photograph: Image.Image,
    seen: Map | None,
    row: pd.Series,
    note: str = "",
    level: float | None = None,
    shown: Shown = PRESET,
) -> Image.Image:
    """Numbers on top, then photograph and map one under the other (beside, if it is tall), then the
    parts of a gram map.

    row : of `Combiner.table`, with `TARGET_low` and `TARGET_high` where there are intervals, of
        this level.
    note : said under the id.
    """
    blocks = [_panel(photograph, "Photograph")]
    first = shown.first.name if shown.first else ""
    if seen is not None:
        blocks.append(_mapped(photograph, seen, first, seen.caption))
    tall = photograph.height > 0.8 * photograph.width
    body = _beside(blocks) if tall else _below(blocks)
    if seen is not None and seen.unit == "grams":
        third = (body.width - 2 * GAP) // 3
        high = max(1, round(photograph.height * third / photograph.width))
        small = photograph.resize((third, high), reducing_gap=3.0)
        for i in range(0, len(shown.parts), 3):
            maps = []
            for name in shown.parts[i : i + 3]:
                told = shown.with_unit(name, seen.told(name))
                maps.append(_mapped(small, seen, name, f"{shown.titles[name]}, {told}"))
            body = _below([body, _beside(maps)])
    head = _numbers(row, note, max(body.width, LEAST), shown)
    foot = _foot(seen, level, head.width, shown)
    return ImageOps.expand(_below([head, body, foot]), MARGIN, PAPER)


def draw_thumbnail(photograph: Image.Image, seen: Map | None, side: int) -> Image.Image:
    """Photograph and map next to each other, for a table."""
    small = photograph.copy()
    small.thumbnail((side, side), reducing_gap=3.0)
    if seen is None:
        return small
    first = seen.shown.first
    both = Image.new("RGB", (2 * small.width, small.height))
    both.paste(small, (0, 0))
    layer_HW = seen.layer(first.name if first else "")
    both.paste(overlay(small, layer_HW, seen.ends), (small.width, 0))
    return both


def _numbers(row: pd.Series, note: str, width: int, shown: Shown) -> Image.Image:
    """The id, and the numbers with their spread and interval, then classes with the probability."""
    y = 70 if note else 46
    cells = []
    for name, title in shown.titles.items():
        lines = [f"± {shown.write(name, row[f'{name}_sd'])}"]
        if f"{name}_low" in row:
            ends = [shown.write(name, row[f"{name}_{end}"]) for end in ("low", "high")]
            lines.append(" to ".join(ends))
        cells.append((title, shown.with_unit(name, row[name]), lines))
    for name, (word, share) in shown.words(row).items():
        cells.append(
            (
                name,
                _plain(str(word)) or "-",
                [f"probability {share:.2f}"] if word else [],
            )
        )

    tall = 102 if any(len(lines) > 1 for *_, lines in cells) else 80
    n_rows = -(-len(cells) // COLUMNS)
    n_columns = min(len(cells), COLUMNS)
    height = y + tall * n_rows + ROW_GAP * (n_rows - 1)
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    _words(draw, (0, 0), _plain(str(row["image_id"])), 26, INK, width)
    if note:
        _words(draw, (0, 34), _plain(note), 16, WARNING, width)
    room = width // n_columns - 8
    for k, (title, value, lines) in enumerate(cells):
        x = k % COLUMNS * width // n_columns
        top = y + k // COLUMNS * (tall + ROW_GAP)
        draw.line([(x, top - 8), (x + room, top - 8)], RULE, 1)
        _words(draw, (x, top), _plain(title), 16, MUTED, room)
        _words(
            draw,
            (x, top + 20),
            value,
            BIG if width > 800 else SMALL,
            INK,
            room,
        )
        for i, line in enumerate(lines):
            _words(draw, (x, top + 56 + 22 * i), line, 17, MUTED, room)
    return image


def _foot(seen: Map | None, level: float | None, width: int, shown: Shown) -> Image.Image:
    """What the numbers and maps are."""
    lines = []
    if shown.first:
        interval = f"; below it the {level:.0%} interval" if level else ""
        lines.append(f"± standard deviation over heads and views{interval}")
    if seen is not None and seen.unit == "grams":
        lines.append(about_maps(shown))
    image = Image.new("RGB", (width, 20 * len(lines)), PAPER)
    for i, line in enumerate(lines):
        _words(ImageDraw.Draw(image), (0, 20 * i), line, 15, MUTED, width)
    return image


def _panel(picture: Image.Image, caption: str) -> Image.Image:
    image = Image.new("RGB", (picture.width, picture.height + 26), PAPER)
    _words(ImageDraw.Draw(image), (0, 0), caption, 17, INK, picture.width)
    image.paste(picture, (0, 26))
    return image


def _mapped(photograph: Image.Image, seen: Map, name: str, caption: str) -> Image.Image:
    """A map over the photograph, and its scale."""
    layer = seen.layer(name)
    bottom, top = seen.ends
    painted = _panel(overlay(photograph, layer, seen.ends), _plain(caption))
    unit = "times an even look"
    if seen.unit == "grams":
        a_patch = " a patch" * (seen.shown.first.kind == "amount")
        unit = (seen.shown.unit(name) + a_patch).strip()
    last = f"{top:.3g} {unit}".rstrip()
    if layer.max() > top:
        last += " or more"
    scale = _scale(min(painted.width, 420), f"{bottom:.3g}", last)
    return _below([painted, scale], 8)


def _scale(length: int, first: str, last: str) -> Image.Image:
    """Colours from 0 to the last one."""
    image = Image.new("RGB", (length, BAR + 24), PAPER)
    draw = ImageDraw.Draw(image)
    row_W3 = colours(np.linspace(0, 1, length))
    image.paste(Image.fromarray(np.tile(row_W3, (BAR, 1, 1))), (0, 0))
    draw.text((0, BAR + 3), first, MUTED, _font(15))
    draw.text((length, BAR + 3), last, MUTED, _font(15), anchor="ra")
    return image


def _below(blocks: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    image = Image.new(
        "RGB",
        (
            max(b.width for b in blocks),
            sum(b.height + gap for b in blocks) - gap,
        ),
        PAPER,
    )
    y = 0
    for block in blocks:
        image.paste(block, (0, y))
        y += block.height + gap
    return image


def _beside(blocks: Sequence[Image.Image]) -> Image.Image:
    image = Image.new(
        "RGB",
        (
            sum(b.width + GAP for b in blocks) - GAP,
            max(b.height for b in blocks),
        ),
        PAPER,
    )
    x = 0
    for block in blocks:
        image.paste(block, (x, 0))
        x += block.width + GAP
    return image


def _words(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    size: int,
    ink: tuple[int, int, int],
    room: int,
) -> None:
    """One line of text, cut where it would leave its room."""
    font = _font(size)
    kept = " ".join(text.split())[:400]  # more never fits, and each letter less is measured
    shown = kept
    while kept and font.getlength(shown) > room:
        kept = kept[:-1].rstrip()
        shown = kept + "..."
    draw.text(at, shown, ink, font)


def _plain(text: str) -> str:
    """ASCII, as Pillow's font has little else: no accents, ? for other letters."""
    kept = []
    # NFKD takes a letter with an accent apart
    for letter in unicodedata.normalize("NFKD", text):
        if not unicodedata.combining(letter):
            kept.append(letter if letter.isascii() else "?")
    return "".join(kept)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
