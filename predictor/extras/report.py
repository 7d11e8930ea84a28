"""report.html: one page with every photograph's masses, made to be sorted and looked through; it
needs nothing but itself.

Thumbnails are in the page, the pictures are files beside it. All texts that come from outside are
escaped here.
"""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

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
SPREAD = "± of Total"

MAPS = {
    "grams": "The maps show grams in every patch of a photograph, as the heads that count them see "
    "them: they sum to what "
    "these heads say of it, before masses are made to balance.",
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
    title = f"Dry biomass of {_count(len(table), 'photograph')}"
    body = [
        f"<h1>{title}</h1>",
        _summary(about, table, entries),
        _histogram(table["Dry_Total_g"].to_numpy(float)),
        f'<p class="note">{MAPS[about.unit]}</p>',
        _TOOLS,
        _table(about, table, entries),
        _DIALOG,
    ]
    end = f"</main>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    write_whole(path, "\n".join([_HEAD.replace("TITLE", title), *body, end]))
    return path


def _summary(about: About, table: pd.DataFrame, entries: Sequence[Entry]) -> str:
    members, heads = about.members, Counter()
    for member in members:
        heads[member.config.head.kind] += len(member.heads)
    total = table["Dry_Total_g"]
    facts = {
        "Heads": ", ".join(f"{n} {kind}" for kind, n in heads.items()),
        "Runs" if len(members) > 1 else "Run": ", ".join(member.name for member in members),
        "Backbone": ", ".join(
            dict.fromkeys(f"{m.spec.tokens.model}, {m.spec.tokens.crop}" for m in members)
        ),
        "Views": ", ".join(about.view_names),
    }
    if len(total):
        facts["Total, median"] = (
            f"{total.median():.1f} g, from {total.min():.1f} to {total.max():.1f}"
        )
        facts["± of Total, median"] = f"{table['Dry_Total_g_sd'].median():.1f} g"
    if n := sum(bool(entry.why) for entry in entries):
        facts["Could not be used"] = f"{_count(n, 'photograph')}; the training mean stands in"
    return (
        "<dl>"
        + "".join(
            f"<div><dt>{key}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items()
        )
        + "</dl>"
    )


def _histogram(total_N: np.ndarray) -> str:
    """How many photographs have how much Total, as an inline SVG."""
    if not len(total_N):
        return ""
    count_B, edge_B = np.histogram(total_N, N_BINS, (0, max(float(total_N.max()), 1e-9)))
    most = count_B.max()
    bars = [
        f'<rect x="{12 * i + 1}" y="{90 - 80 * n / most:.1f}" width="10" '
        f'height="{80 * n / most:.1f}">'
        f"<title>{edge_B[i]:.0f} to {edge_B[i + 1]:.0f} g: {n}</title></rect>"
        for i, n in enumerate(count_B)
        if n
    ]
    peak = int(count_B.argmax())
    told = (
        f"Histogram of Total: most photographs, {most}, have {edge_B[peak]:.0f} to "
        f"{edge_B[peak + 1]:.0f} g"
    )
    right = 12 * N_BINS
    return (
        f'<figure><svg viewBox="0 0 {right} 106" role="img" aria-label="{told}">{"".join(bars)}'
        f'<line x1="0" y1="90.5" x2="{right}" y2="90.5"/><text x="0" y="103">0</text>'
        f'<text x="{right}" y="103" text-anchor="end">{edge_B[-1]:.0f} g</text></svg>'
        f"<figcaption>Photographs by Total; the highest bar is {most}</figcaption></figure>"
    )


def _table(about: About, table: pd.DataFrame, entries: Sequence[Entry]) -> str:
    intervals, notes = "Dry_Total_g_low" in table, any(entry.why for entry in entries)
    titles = [
        "Photograph",
        "Total",
        SPREAD,
        *(["Interval"] if intervals else []),
        *list(NAMES.values())[1:],
        *(["Note"] if notes else []),
    ]
    interval = (
        f" An interval covers {about.level:.0%} of new sites' photographs."
        if intervals and about.level
        else ""
    )
    head = "".join(
        f'<th scope="col" role="columnheader"><button type="button">{title}</button></th>'
        for title in titles
    )
    # what is least certain first
    order = np.argsort(-table["Dry_Total_g_sd"].to_numpy(float), kind="stable")
    widest = (
        float(max(table["Dry_Total_g_high" if intervals else "Dry_Total_g"], default=1.0)) * 1.05
    )
    rows = [_row(table.iloc[i], entries[i], titles, widest) for i in order]
    told = (
        f"Grams; ± is the standard deviation over heads and views.{interval} A photograph "
        "opens "
        "its picture."
    )
    return (
        f'<table role="table"><caption>{told}</caption>\n<thead role="rowgroup"><tr '
        f'role="row">{head}</tr></thead>\n'
        '<tbody role="rowgroup">\n' + "\n".join(rows) + "\n</tbody></table>"
    )


def _row(row: pd.Series, entry: Entry, titles: Sequence[str], widest: float) -> str:
    sd = row["Dry_Total_g_sd"]
    cells = {
        "Total": (row["Dry_Total_g"], f"<b>{row['Dry_Total_g']:.1f}</b>{_whisker(row, widest)}"),
        SPREAD: (sd, f"{sd:.1f}"),
    }
    if "Interval" in titles:
        low, high = row["Dry_Total_g_low"], row["Dry_Total_g_high"]
        cells["Interval"] = (high - low, f"{low:.1f} to {high:.1f}")
    for name, title in list(NAMES.items())[1:]:
        cells[title] = (
            row[name],
            f"{row[name]:.1f} <small>± {row[f'{name}_sd']:.1f}</small>{_range(row, name)}",
        )
    if "Note" in titles:
        cells["Note"] = (
            entry.why,
            f"<em>training mean stands in</em> <small>{escape(entry.why)}</small>"
            if entry.why
            else "",
        )
    tds = "".join(
        f'<td role="cell" data-label="{title}" data-v="{_value(value)}">{shown}</td>'
        for title, (value, shown) in cells.items()
    )
    return (
        '<tr role="row"><th scope="row" '
        f'role="rowheader">{_link(str(row["image_id"]), entry)}</th>{tds}</tr>'
    )


def _link(image_id: str, entry: Entry) -> str:
    image = (
        f'<img loading="lazy" width="{entry.width}" height="{entry.height}" alt="Photograph and '
        'map of" '
        f'src="data:image/jpeg;base64,{entry.thumbnail}">'
        if entry.thumbnail
        else ""
    )
    return f'<a href="{quote(entry.name)}">{image}<span class="id">{escape(image_id)}</span></a>'


def _whisker(row: pd.Series, widest: float) -> str:
    """Total and its interval, or else ± sd, on a line that is the same for all rows."""
    total, sd = row["Dry_Total_g"], row["Dry_Total_g_sd"]
    low, high = (
        row.get("Dry_Total_g_low", max(total - sd, 0)),
        row.get("Dry_Total_g_high", total + sd),
    )
    left, right, middle = (100 * min(x / widest, 1) for x in (low, high, total))
    return (
        '<span class="track" aria-hidden="true"><i '
        f'style="left:{left:.1f}%;width:{right - left:.1f}%"></i>'
        f'<u style="left:{middle:.1f}%"></u></span>'
    )


def _range(row: pd.Series, name: str) -> str:
    return (
        f"<br><small>{row[f'{name}_low']:.1f} to {row[f'{name}_high']:.1f}</small>"
        if f"{name}_low" in row
        else ""
    )


def _value(value: float | str) -> str:
    """What a cell is sorted by."""
    return escape(value) if isinstance(value, str) else f"{value:.6g}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #17191a; --muted: #5a6165; --rule: #dde1e3; --soft: #f3f5f5;
  --mark: #a8480b; --bar: #5b7f3a; }
@media (prefers-color-scheme: dark) { :root { --paper: #151718; --ink: #e8eaeb; --muted: #a2a9ad; --rule: #33383b;
  --soft: #1e2122; --mark: #f5a263; --bar: #93b96d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.45 system-ui, sans-serif; }
main { max-width: 1320px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 16px; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 10px 24px; margin: 0 0 20px; }
dt, .note, figcaption, caption, small { color: var(--muted); font-size: .85rem; }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 0 0 16px; max-width: 400px; }
svg { width: 100%; display: block; } rect { fill: var(--bar); } line { stroke: var(--rule); }
text { fill: var(--muted); font-size: 7.5px; }
.tools { position: sticky; top: 0; z-index: 1; background: var(--paper); padding: 8px 0; }
input { font: inherit; color: inherit; background: var(--soft); border: 1px solid var(--muted); border-radius: 6px;
  padding: 5px 9px; max-width: 100%; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; padding-bottom: 6px; }
th, td { text-align: left; padding: 7px 12px 7px 0; border-bottom: 1px solid var(--rule); vertical-align: middle;
  font-variant-numeric: tabular-nums; font-weight: normal; }
td { white-space: nowrap; } td[data-label=Note] { white-space: normal; } td small { white-space: nowrap; }
td[data-label=Note] small { white-space: normal; overflow-wrap: anywhere; }
thead button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 6px 2px; cursor: pointer;
  white-space: nowrap; }
thead button::after { content: " \\2195"; color: var(--muted); font-weight: normal; }
[aria-sort=ascending] button::after { content: " \\2191"; color: inherit; }
[aria-sort=descending] button::after { content: " \\2193"; color: inherit; }
tbody a { color: inherit; display: flex; align-items: center; gap: 12px; text-decoration: none; }
tbody a:hover .id { text-decoration: underline; } .id { overflow-wrap: anywhere; min-width: 12ch; }
tbody img { width: 210px; height: auto; max-height: 150px; object-fit: contain; background: var(--soft); border-radius: 3px;
  flex: none; }
:focus-visible { outline: 3px solid var(--bar); outline-offset: 2px; }
em { font-style: normal; color: var(--mark); }
.track { display: block; position: relative; width: 120px; height: 10px; margin-top: 2px; border-bottom: 1px solid var(--rule); }
.track i { position: absolute; top: 3px; height: 4px; background: var(--bar); opacity: .45; min-width: 2px; }
.track u { position: absolute; top: 0; width: 3px; height: 10px; margin-left: -1px; background: var(--bar); }
dialog { border: 0; padding: 0; background: var(--paper); color: var(--ink); border-radius: 8px; width: min(1280px, 96vw);
  max-height: 96vh; } dialog::backdrop { background: #000b; }
dialog img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
dialog p { margin: 0 8px; overflow-wrap: anywhere; flex: 1; }
dialog nav { display: flex; align-items: center; gap: 6px; padding: 8px; position: sticky; top: 0; background: var(--paper); }
dialog button { font: inherit; color: inherit; background: var(--soft); border: 1px solid var(--muted); border-radius: 6px;
  padding: 5px 12px; cursor: pointer; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
@media (max-width: 900px) {
  table, tbody, caption { display: block; } thead tr { display: flex; flex-wrap: wrap; gap: 0 10px; }
  thead { display: block; } thead th { border: 0; padding: 0; }
  tbody tr { display: grid; grid-template-columns: repeat(auto-fit, minmax(96px, 1fr)); gap: 6px 10px; padding: 12px 0;
    border-bottom: 1px solid var(--rule); }
  tbody th { grid-column: 1 / -1; } td[data-label=Note] { grid-column: 1 / -1; } td[data-label=Note]:empty { display: none; }
  tbody th, td { border: 0; padding: 0; font-size: .9rem; }
  td::before { content: attr(data-label); display: block; color: var(--muted);
    font-size: .8rem; }
  tbody a { flex-direction: column; align-items: stretch; gap: 4px; } tbody img { width: 100%; max-height: none; }
  .track { width: 100%; max-width: 120px; }
}
"""

_HEAD = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>{_STYLE}</style>
</head>
<body>
<main>"""

_TOOLS = """<div class="tools"><label>Find <input type="search" placeholder="part of an image id"></label>
<span class="unseen" role="status"></span></div>"""

_DIALOG = """<dialog aria-label="Picture"><nav><button type="button" aria-label="Previous photograph">&larr;</button>
<button type="button" aria-label="Next photograph">&rarr;</button><p></p><button type="button">Close</button></nav>
<img alt=""></dialog>"""

_SCRIPT = """
const body = document.querySelector("tbody"), heads = [...document.querySelectorAll("thead th")];
const say = text => document.querySelector("[role=status]").textContent = text;
const id = row => row.querySelector(".id").textContent;
const compare = new Intl.Collator(undefined, { numeric: true }).compare;

function key(row, column) {
  const cell = row.cells[column];
  return column ? cell.dataset.v : id(row);
}

function sort(column, descending) {
  const byText = column === 0 || heads[column].textContent === "Note";
  const order = byText ? compare : (a, b) => a - b;
  const rows = [...body.rows].sort((a, b) => order(key(a, column), key(b, column)) * (descending ? -1 : 1));
  body.append(...rows);
  heads.forEach((head, i) => i === column ? head.setAttribute("aria-sort", descending ? "descending" : "ascending")
                                          : head.removeAttribute("aria-sort"));
}

heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
  const descending = head.ariaSort ? head.ariaSort === "ascending" : column > 0;
  sort(column, descending);
  say(`sorted by ${head.textContent}, ${descending ? "descending" : "ascending"}`);
}));
if (heads.length > 2) heads[2].setAttribute("aria-sort", "descending");

document.querySelector("input").addEventListener("input", event => {
  const wanted = event.target.value.trim().toLowerCase();
  for (const row of body.rows) row.hidden = !id(row).toLowerCase().includes(wanted);
  say(`${[...body.rows].filter(row => !row.hidden).length} photographs`);
});

const dialog = document.querySelector("dialog"), [back, next, close] = dialog.querySelectorAll("button");
let shown = null;

function show(row) {
  if (!row) return;
  shown = row;
  const picture = dialog.querySelector("img"), of = id(row);
  picture.src = row.querySelector("a").href;
  picture.alt = `${of}: photograph, map and masses`;
  dialog.querySelector("p").textContent = of;
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

function step(by) {
  const rows = [...body.rows].filter(row => !row.hidden);
  show(rows[rows.indexOf(shown) + by]);
}

body.addEventListener("click", event => {
  const link = event.target.closest("a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  show(link.closest("tr"));
});
back.addEventListener("click", () => step(-1));
next.addEventListener("click", () => step(1));
close.addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => shown?.querySelector("a").focus());
dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("keydown", event => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
"""
