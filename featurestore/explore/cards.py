"""What a store or a photograph shows of itself in a notebook: a card."""

import base64
import io
from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from featurestore.errors import BiomassError
from featurestore.explore.facts import facts
from featurestore.explore.pictures import SHOW_GAP, pictures, resized
from featurestore.explore.statistics import stats
from featurestore.read.reader import Reader

CARD_THUMBS = 8
CARD_THUMB_HEIGHT = 60
CARD_STATS_ROWS = 8  # of more, the table is folded


def store_html(store: Reader) -> str:
    """A notebook's card: facts, some thumbnails, statistics.

    It needs nothing from outside and sets no colours.
    """
    rows = stats(store)
    table = _table(rows[0], [row.values() for row in rows])
    unfolded = " open" if len(rows) <= CARD_STATS_ROWS else ""
    return _card(
        f"FeatureStore {store.path}",
        _facts_table(facts(store))
        + _thumb_strip(store)
        + f"<details{unfolded}><summary>statistics of the sealed images</summary>{table}</details>",
    )


def image_html(store: Reader, image: int) -> str:
    """A notebook's card of one image: its picture, or why there is none, and its labels."""
    labels = store.catalog_rows(np.s_[image : image + 1]).iloc[0]
    try:
        shown = "".join(
            f'<img src="{_data_uri(picture, kind)}" style="max-width:100%">'
            for kind, picture in pictures(store, image, 0).items()
        )
    except BiomassError as err:
        shown = f"<div>{escape(str(err))}</div>"
    shown = f'<div style="display:flex;flex-wrap:wrap;gap:{SHOW_GAP}px">{shown}</div>'
    return _card(
        f"{labels['image_id']}: views {', '.join(store.view_names)}",
        shown + _facts_table(labels.to_dict()),
    )


def _card(title: str, body: str) -> str:
    return (
        '<div style="border:1px solid rgba(128,128,128,.4);border-radius:6px;padding:.6em '
        '.9em;max-width:max-content">'
        f'<div style="font-weight:600;margin-bottom:.4em">{escape(title)}</div>{body}</div>'
    )


def _facts_table(pairs: dict[str, Any]) -> str:
    rows = (
        '<tr style="background:none"><td style="text-align:left;opacity:.65;padding:0 1.2em 0 '
        f'0">{escape(str(name))}</td>'
        f'<td style="text-align:left;padding:0">{_cell(value)}</td></tr>'
        for name, value in pairs.items()
    )
    return f'<table style="border:none;margin:.3em 0">{"".join(rows)}</table>'


def _table(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    style = "text-align:right;padding:0 .6em"
    lines = ["".join(f'<th style="{style}">{escape(str(name))}</th>' for name in head)]
    for row in rows:
        lines.append("".join(f'<td style="{style}">{_cell(cell)}</td>' for cell in row))
    # without the stripes that notebooks give tables
    body = "".join(f'<tr style="background:none">{line}</tr>' for line in lines)
    return (
        f'<table style="border:none;margin:.3em 0;font-variant-numeric:tabular-nums">{body}</table>'
    )


def _cell(value: Any) -> str:
    """A value as HTML text.

    The catalog and counts hold whole numbers as floats: they get no point.
    """
    if isinstance(value, float):
        value = f"{value:.0f}" if value.is_integer() else f"{value:.4g}"
    return escape(str(value))


def _thumb_strip(store: Reader) -> str:
    """Thumbnails of some sealed images, spread over the store."""
    if not store.spec.thumb or not len(store.sealed):
        return ""
    # unique: a small store has fewer than are shown of a large one
    spread = np.linspace(0, len(store.sealed) - 1, CARD_THUMBS)
    some = np.unique(spread.round().astype(int))
    height, width = store.spec.thumb
    small_width = max(1, round(width * CARD_THUMB_HEIGHT / height))
    images = []
    for image in store.sealed[some].tolist():
        small = resized(store.array("thumbs")[image], small_width, CARD_THUMB_HEIGHT)
        row = store.catalog_rows(np.array([image]))
        name = escape(row["image_id"].iloc[0])
        images.append(  # the id shows under the mouse
            f'<img src="{_data_uri(small, "JPEG")}" alt="{name}" title="{name}" '
            f'style="height:{CARD_THUMB_HEIGHT}px">'
        )
    return f'<div style="display:flex;flex-wrap:wrap;gap:4px;margin:.5em 0">{"".join(images)}</div>'


def _data_uri(picture: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    picture.save(file, kind, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
