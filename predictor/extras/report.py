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
from predictor.extras.picture import NAMES, Map, draw_thumbnail
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
            image, buffer = draw_thumbnail(photograph, seen, side), io.BytesIO()
            image.save(buffer, "JPEG", quality=quality, optimize=True)
            text = base64.b64encode(buffer.getvalue()).decode()
            if len(text) <= min(LARGEST_BYTES, PAGE_BYTES / n_pictures):
                return cls(name, why, text, *image.size)
        return cls(name, why, "", 0, 0)


def write_report(path: Path, about: About, table: pd.DataFrame, entries: Sequence[Entry]) -> Path:
    """Write the page. table : wide, as `Combiner.table`, perhaps with intervals; entries : of its
    rows."""
    has_intervals = "Dry_Total_g_low" in table
    has_notes = any(entry.why for entry in entries)
    parts = dict(list(NAMES.items())[1:])
    columns = ["Photograph", "Total", "± of Total"]
    columns += ["Interval"] * has_intervals
    columns += parts.values()
    columns += ["Note"] * has_notes

    # the widest spread comes first: there a look is worth the most
    order = np.argsort(-table["Dry_Total_g_sd"].to_numpy(float), kind="stable")
    masses = table.to_dict("records")
    greatest_g = max(table["Dry_Total_g_high" if has_intervals else "Dry_Total_g"], default=1.0)
    photographs = [(masses[i], entries[i], _track(masses[i], 1.05 * greatest_g)) for i in order]

    from jinja2 import Environment, PackageLoader, select_autoescape

    pages = Environment(loader=PackageLoader("predictor.extras"), autoescape=select_autoescape())
    templates = resources.files("predictor.extras") / "templates"
    page = pages.get_template("report.html").render(
        # as they are: braces in them are their own, not Jinja's
        style=(templates / "report.css").read_text(encoding="utf-8").rstrip("\n"),
        script=(templates / "report.js").read_text(encoding="utf-8").rstrip("\n"),
        facts=_facts(about, table, entries),
        histogram=_histogram(table["Dry_Total_g"].to_numpy(float)),
        about_maps=MAPS[about.unit],
        level=about.level if has_intervals else None,
        columns=columns,
        parts=parts,
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
    total_N = table["Dry_Total_g"]
    if len(total_N):
        ends = f"from {total_N.min():.1f} to {total_N.max():.1f}"
        facts["Total, median"] = f"{total_N.median():.1f} g, {ends}"
        facts["± of Total, median"] = f"{table['Dry_Total_g_sd'].median():.1f} g"
    if n := sum(bool(entry.why) for entry in entries):
        photographs = f"{n:,} photograph{'' if n == 1 else 's'}"
        facts["Could not be used"] = f"{photographs}; the training mean stands in"
    return facts


def _histogram(total_N: np.ndarray) -> dict | None:
    """How many photographs have how much Total: bars of an SVG, and what they say."""
    if not len(total_N):
        return None
    # all masses may be 0, and a histogram needs a range
    n_B, edge_B = np.histogram(total_N, N_BINS, (0, max(float(total_N.max()), 1e-9)))
    most = n_B.max()
    peak = int(n_B.argmax())
    spans = [f"{edge_B[i]:.0f} to {edge_B[i + 1]:.0f} g" for i in range(N_BINS)]
    bars = [
        {"x": 12 * i + 1, "height": 80 * n / most, "told": f"{spans[i]}: {n}"}
        for i, n in enumerate(n_B)
        if n
    ]
    return {
        "width": 12 * N_BINS,
        "bars": bars,
        "most": most,
        "last": f"{edge_B[-1]:.0f}",
        "told": f"Histogram of Total: most photographs, {most}, have {spans[peak]}",
    }


def _track(mass: Mapping[str, float], widest_g: float) -> dict[str, float]:
    """Total and its interval, or else ± sd, in per cent of a scale shared by all photographs."""
    total_g = mass["Dry_Total_g"]
    sd_g = mass["Dry_Total_g_sd"]
    low_g = mass.get("Dry_Total_g_low", max(total_g - sd_g, 0))
    high_g = mass.get("Dry_Total_g_high", total_g + sd_g)
    left, middle, right = (100 * min(x / widest_g, 1) for x in (low_g, total_g, high_g))
    return {"left": left, "middle": middle, "width": right - left}
