"""report.html: one page with every photograph's masses, made to be sorted and looked through; it
needs nothing but itself.

Thumbnails are in the page, the pictures are files beside it. How it looks is in `templates`, which
escape all texts.
"""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from featurestore.disk.durable import write_whole
from predictor.extras.picture import Map, draw_thumbnail
from predictor.extras.shown import PRESET, Shown
from predictor.members.member import Member

PAGE_BYTES = 36_000_000  # of all thumbnails, as text
LARGEST_BYTES = 48_000  # of one, as text
# longer side in pixels, JPEG quality: the first to fit
SIZES = ((300, 80), (300, 60), (220, 60), (150, 60), (110, 50), (80, 40))
N_BINS = 20

MAPS = {
    "grams": "The maps show where in a photograph the heads read their grams from, not where "
    "plants stand. All maps of a photograph share one scale. They sum to what these heads say of "
    "it, before masses are made to balance.",
    "share": "The maps show where the heads looked, not grams: 1 is an even look at all patches.",
    None: "These heads say nothing of single patches, so there are no maps.",
}


@dataclass(frozen=True)
class About:
    """What all photographs of a page have in common."""

    members: Sequence[Member]
    view_names: Sequence[str]
    unit: str | None
    """What the maps say."""
    level: float | None
    """Of the intervals, where the table has them."""
    shown: Shown = PRESET


@dataclass(frozen=True)
class Entry:
    """What the page shows of one photograph beside its numbers."""

    name: str
    """File name of its picture."""
    why: str
    """Why the training mean stands in for it, else empty."""
    thumbnail: str
    """JPEG as base64; empty where the page has no room for it."""
    width: int
    height: int

    @classmethod
    def of(
        cls,
        row: pd.Series,
        name: str,
        photograph: Image.Image,
        seen: Map | None,
        why: str,
        n_pictures: int,
    ) -> "Entry":
        for side, quality in SIZES:
            image = draw_thumbnail(photograph, seen, side)
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality, optimize=True)
            text = base64.b64encode(buffer.getvalue()).decode()
            if len(text) <= min(LARGEST_BYTES, PAGE_BYTES / n_pictures):
                return cls(name, why, text, *image.size)
        return cls(name, why, "", 0, 0)


def write_report(path: Path, about: About, table: pd.DataFrame, entries: Sequence[Entry]) -> Path:
    """Write the page. table : wide, as `Combiner.table`, perhaps with intervals; entries : of its
    rows."""
    shown = about.shown
    first = shown.first.name if shown.first else None
    has_intervals = f"{first}_low" in table
    has_notes = any(entry.why for entry in entries)
    titles = dict(shown.titles)
    first_title = titles.pop(first, "")
    columns = ["Photograph"]
    if first:
        columns += [first_title, f"± of {first_title}"]
        columns += ["Interval"] * has_intervals
    columns += titles.values()
    rows = table.to_dict("records")
    words = [shown.words(row) for row in rows]
    columns += words[0] if words else {}
    columns += ["Note"] * has_notes

    # the least certain comes first: there a look is worth the most
    share_N = []
    for each in words:
        share_N.append(min((share for _, share in each.values()), default=0.0))
    order = np.argsort(share_N, kind="stable")
    tracks = [{}] * len(table)
    if first:
        order = np.argsort(-table[f"{first}_sd"].to_numpy(float), kind="stable")
        ends = [_ends(row, first, shown) for row in rows]
        least = min((low for low, _ in ends), default=0.0)
        scale = _scale_of(table, first, shown, least)
        tracks = [_track(row[first], *own, *scale) for row, own in zip(rows, ends, strict=True)]
    photographs = [(rows[i], entries[i], tracks[i], words[i]) for i in order]

    from jinja2 import Environment, PackageLoader, select_autoescape

    pages = Environment(
        loader=PackageLoader("predictor.extras"),
        autoescape=select_autoescape(),
    )
    templates = resources.files("predictor.extras") / "templates"
    page = pages.get_template("report.html").render(
        # as they are: braces in them are their own, not Jinja's
        style=(templates / "report.css").read_text(encoding="utf-8").rstrip("\n"),
        script=(templates / "report.js").read_text(encoding="utf-8").rstrip("\n"),
        facts=_facts(about, table, entries),
        histogram=_histogram(table[first].to_numpy(float), shown) if first else None,
        about_maps=_about_maps(about.unit, shown),
        shown=shown,
        first=first,
        first_title=first_title,
        has_words=any(words),
        level=about.level if has_intervals else None,
        columns=columns,
        others=titles,
        photographs=photographs,
    )
    # a folder's name may not be UTF-8
    write_whole(path, (page + "\n").encode(errors="replace"))
    return path


def _facts(about: About, table: pd.DataFrame, entries: Sequence[Entry]) -> dict[str, str]:
    """What the top of the page says of all photographs."""
    members = about.members
    heads: Counter[str] = Counter()
    for member in members:
        heads[member.config.head.kind] += len(member.heads)
    specs = [spec for member in members for spec in member.specs.values()]
    backbones = [f"{spec.tokens.model}, {spec.tokens.crop_and_fit}" for spec in specs]

    facts = {
        "Heads": ", ".join(f"{n} {kind}" for kind, n in heads.items()),
        "Runs" if len(members) > 1 else "Run": ", ".join(member.name for member in members),
        "Backbone": ", ".join(dict.fromkeys(backbones)),
        "Views": ", ".join(about.view_names),
    }
    shown = about.shown
    if shown.first and len(table):
        name = shown.first.name
        title = shown.titles[name]
        value_N = table[name]
        ends = f"from {shown.write(name, value_N.min())} to {shown.write(name, value_N.max())}"
        facts[f"{title}, median"] = f"{shown.with_unit(name, value_N.median())}, {ends}"
        sd = table[f"{name}_sd"].median()
        facts[f"± of {title}, median"] = shown.with_unit(name, sd)
    if n := sum(bool(entry.why) for entry in entries):
        photographs = f"{n:,} photograph{'' if n == 1 else 's'}"
        facts["Could not be used"] = f"{photographs}; the training mean stands in"
    return facts


def _histogram(value_N: np.ndarray, shown: Shown) -> dict | None:
    """How many photographs have how much of the first target: bars of an SVG, and what they say."""
    if not len(value_N):
        return None
    name = shown.first.name
    unit = shown.unit(name)
    least = float(value_N.min()) if shown.first.kind == "level" else 0
    # all may be 0, and a histogram needs a range
    greatest = max(float(value_N.max()), least + 1e-9)
    n_B, edge_B = np.histogram(value_N, N_BINS, (least, greatest))
    written = [f"{edge:.0f}" if unit else f"{edge:.3g}" for edge in edge_B]
    most = n_B.max()
    peak = int(n_B.argmax())
    spans = [f"{written[i]} to {written[i + 1]} {unit}".rstrip() for i in range(N_BINS)]
    bars = []
    for i, n in enumerate(n_B):
        if n:
            bars.append({"x": 12 * i + 1, "height": 80 * n / most, "told": f"{spans[i]}: {n}"})
    return {
        "width": 12 * N_BINS,
        "bars": bars,
        "most": most,
        "first": written[0],
        "last": f"{written[-1]} {unit}".rstrip(),
        "told": f"Histogram of {shown.titles[name]}: most photographs, {most}, have {spans[peak]}",
    }


def _about_maps(unit: str | None, shown: Shown) -> str:
    """What the maps of all photographs say."""
    if shown.targets.preset or unit is None:
        return MAPS[unit]
    if unit == "share":
        return "The maps show where the heads looked: 1 is an even look at all patches."
    name = shown.first.name
    if shown.first.kind == "amount":
        before = ", before sums are made to hold" if shown.targets.sums else ""
        return (
            f"The maps show where in a photograph the heads read {name} from. All maps of a "
            f"photograph share one scale. They sum to what these heads say of it{before}."
        )
    return (
        f"The maps show what the heads say of {name} in each patch; their mean is what these heads "
        "say of the photograph."
    )


def _ends(row: Mapping[str, float], name: str, shown: Shown) -> tuple[float, float]:
    """An interval, or else ± sd; what cannot be negative ends at 0."""
    value = row[name]
    sd = row[f"{name}_sd"]
    low = value - sd if shown.targets[name].kind == "level" else max(value - sd, 0)
    return row.get(f"{name}_low", low), row.get(f"{name}_high", value + sd)


def _scale_of(table: pd.DataFrame, name: str, shown: Shown, least: float) -> tuple[float, float]:
    """Ends of the tracks' scale, shared by all photographs."""
    high = f"{name}_high"
    greatest = max(table[high if high in table else name], default=1.0)
    if shown.targets[name].kind != "level":
        return 0.0, 1.05 * greatest
    return least, greatest + 0.05 * (greatest - least)


def _track(value: float, low: float, high: float, least: float, widest: float) -> dict[str, float]:
    """A value and its interval in per cent of a scale."""
    room = max(widest - least, 1e-12)
    left, middle, right = (100 * min((x - least) / room, 1) for x in (low, value, high))
    return {"left": left, "middle": middle, "width": right - left}
