// What the store is: what is odd in it first, then counts, masses by State and date, statistics per view.

import { get, table } from "../api.js";
import { span, track } from "../bars.js";
import { hoverCard, photographLink } from "../cards.js";
import { scale } from "../colours.js";
import { day, dayText, monthTicks } from "../dates.js";
import { bytes, el, facts, grams, num, pending, plain, problem, section, select, twins } from "../dom.js";
import { Scatter } from "../scatter.js";
import { go, photographHref, put } from "../state.js";
import { sortable } from "../table.js";

const MOST_ODD = 6;
const STATS = [
  ["mean", "mean"],
  ["std", "standard deviation"],
  ["min", "least"],
  ["max", "greatest"],
  ["norm", "mean norm"],
];

export async function show({ state, signal, store, failing }) {
  const about = await get(`${store.url}/overview.json`, signal);
  return {
    title: store.name,
    content: [
      ...failing.map(each => problem({ message: `${each.name}: ${each.message}` })),
      what(store, about),
      section(
        "Odd photographs",
        pending(() => odd(store, about, signal)),
      ),
      section(
        "Masses",
        pending(() => masses(state, store, about, signal)),
      ),
      section(
        "Statistics of the tokens",
        pending(() => statistics(store, signal)),
      ),
    ],
  };
}

function what(store, about) {
  const n = value => value.toLocaleString("en"),
    room = about.n_room > about.n_images ? `, room for ${n(about.n_room)}` : "";
  return facts([
    [
      "Photographs",
      `${n(about.n_sealed)} of ${n(about.n_images)} sealed${about.n_skipped ? `, ${n(about.n_skipped)} skipped` : ""}${room}`,
    ],
    ["Views", `${store.views.length}: ${store.views.join(", ")}`],
    ["Patches", `${about.grid.join(" × ")} on a photograph${about.has_patches ? "" : ", pooled only"}`],
    ["Tiles", `${about.n_tiles}, ${about.crop}, ${about.tile.join(" × ")} pixels`],
    ["Channels", n(about.width)],
    ["Backbone", about.backbone],
    ["Size", `${bytes(about.size_bytes)}, ${store.format}`],
    ["Fingerprint", store.fingerprint.slice(0, 12)],
  ]);
}

async function odd(store, about, signal) {
  const url = `${store.url}/odd.json`;
  if (!about.odd) return el("p", {}, "None: every token is finite, and no photograph's statistics lie far from the others'.");
  const found = await get(`${url}?limit=200`, signal);
  const at = Object.fromEntries(found.columns.map((name, i) => [name, i])),
    byImage = new Map();
  for (const row of found.rows) if (!byImage.has(row[at.image_id])) byImage.set(row[at.image_id], row);
  const cards = [...byImage.values()]
    .slice(0, MOST_ODD)
    .map(row =>
      photographLink(
        store,
        row[at.image_id],
        [`${row[at.what]}, view ${row[at.view]}`, `${num(row[at.value])}, typically ${num(row[at.typical])}`],
        { changes: { view: row[at.view] } },
      ),
    );
  const columns = [
    ["Photograph", "image_id"],
    ["View", "view"],
    ["What", "what"],
    ["Value", "value"],
    ["Typical", "typical"],
    ["Score", "score"],
  ];
  return [
    el("div", { class: "photos" }, cards),
    el(
      "details",
      {},
      el("summary", {}, `All ${found.total.toLocaleString("en")}`),
      sortable(
        "Odd photographs, worst first",
        columns.map(([title, name], k) => ({
          title,
          of: row => row[at[name]],
          text: k < 3,
          show: k ? null : row => el("a", { href: photographHref(row[at.image_id], { view: row[at.view] }) }, row[at.image_id]),
        })),
        found.rows,
      ),
    ),
    twins(url, "Odd photographs"),
  ];
}

async function masses(state, store, about, signal) {
  const url = `${store.url}/catalog.json`,
    names = (await get(`${url}?limit=1`, signal)).columns;
  const targets = names.filter(name => name.endsWith("_g"));
  if (!targets.length) return el("p", {}, "The catalog has no masses.");
  const place = el("div", { class: "beside" });
  let chosen = targets.includes(state.target) ? state.target : targets.includes("Dry_Total_g") ? "Dry_Total_g" : targets[0];
  const draw = async () => {
    const columns = ["image_id", "State", "Sampling_Date", chosen].filter(name => names.includes(name));
    const rows = await table(`${url}?columns=${columns.map(encodeURIComponent).join(",")}`, signal);
    place.replaceChildren(...[byState(about, chosen), byDate(store, about, rows, chosen)].filter(Boolean));
  };
  await draw();
  const change = name => {
    chosen = name;
    put({ target: name }, { replace: true });
    draw();
  };
  return [
    el(
      "div",
      { class: "controls" },
      select(
        "Target",
        targets.map(name => [name, plain(name)]),
        chosen,
        change,
      ),
    ),
    place,
    twins(url, "Catalog"),
  ];
}

/** [{ name, n, mean, sd }] of a target by a column of the catalog, as the server counts them. */
const groups = (about, column, target) =>
  (about.targets[column] ?? [])
    .filter(row => row.target === target && row.count)
    .map(({ group, count, mean, sd }) => ({ name: group, n: count, mean, sd }));

function byState(about, target) {
  const found = groups(about, "State", target);
  if (!found.length) return null;
  const range = span(
    found.flatMap(each => [each.mean - (each.sd ?? 0), each.mean + (each.sd ?? 0)]),
    true,
  );
  return sortable(
    `${plain(target)} in grams by State: mean ± standard deviation over photographs`,
    [
      { title: "State", of: row => row.name, text: true, show: row => row.name || "not known" },
      { title: "Photographs", of: row => row.n },
      { title: "Mean", of: row => row.mean, show: row => grams(row.mean) },
      { title: "sd", of: row => row.sd, show: row => grams(row.sd) },
      {
        plain: true,
        show: row =>
          track(range, { value: row.mean, low: row.mean - row.sd, high: row.mean + row.sd, marks: [{ value: 0, kind: "zero" }] }),
      },
    ],
    found,
    { sort: 2, descending: true },
  );
}

function byDate(store, about, rows, target) {
  const dates = rows.column("Sampling_Date"),
    ids = rows.column("image_id"),
    values = rows.column(target);
  if (!dates) return null;
  const x = Float64Array.from(dates, day),
    y = Float64Array.from(values, value => value ?? NaN);
  if (!x.some(Number.isFinite)) return null;
  const colour = scale("State", rows.column("State") ?? ids.map(() => "")),
    means = groups(about, "Sampling_Date", target)
      .map(each => ({ ...each, name: day(each.name) }))
      .filter(each => Number.isFinite(each.name));
  const chart = new Scatter({
    label: `${plain(target)} by date, a point a photograph`,
    class: "wide-chart",
    axes: {
      x: { label: "date", format: dayText, ticks: monthTicks },
      y: { label: `${plain(target)}, g`, format: value => num(value, 3) },
    },
    describe: i => `${ids[i]}, ${dates[i]}, ${grams(values[i])} grams`,
    open: i => go(photographHref(ids[i])),
    card: i =>
      hoverCard(store, ids[i], [`${dates[i]} ${rows.column("State")?.[i] ?? ""}`, `${plain(target)} ${grams(values[i])} g`]),
    above: (ctx, toX, toY, ink) => whiskers(ctx, means, toX, toY, ink),
  });
  chart.set({ x, y, colours: colour.packed });
  return el(
    "figure",
    {},
    el("figcaption", {}, `${plain(target)} by date: photographs as points, mean ± standard deviation of each day as a cross`),
    chart.root,
    colour.legend,
  );
}

function whiskers(ctx, means, toX, toY, ink) {
  ctx.strokeStyle = ink.ink;
  ctx.lineWidth = 1.25;
  ctx.globalAlpha = 0.75;
  for (const { name, mean, sd } of means) {
    const x = toX(name);
    ctx.beginPath();
    if (sd) {
      ctx.moveTo(x, toY(mean - sd));
      ctx.lineTo(x, toY(mean + sd));
    }
    ctx.moveTo(x - 4, toY(mean));
    ctx.lineTo(x + 4, toY(mean));
    ctx.stroke();
  }
  ctx.globalAlpha = 1;
}

async function statistics(store, signal) {
  const url = `${store.url}/stats.json`,
    found = await table(url, signal),
    all = Array.from({ length: found.n }, (_, i) => found.row(i));
  const kinds = [...new Set(all.map(row => row.tokens))];
  return [
    ...kinds.map(kind =>
      oneKind(
        kind,
        all.filter(row => row.tokens === kind),
      ),
    ),
    twins(url, "Statistics"),
  ];
}

function oneKind(kind, rows) {
  const columns = STATS.filter(([name]) => name in rows[0]).map(([name, title]) => {
    const range = span(rows.map(row => row[name]));
    return {
      title,
      of: row => row[name],
      show: row => el("span", { class: "tracked" }, num(row[name]), track(range, { value: row[name], kind: "narrow" })),
    };
  });
  const bad = rows.some(row => row.non_finite) ? [{ title: "not finite", of: row => row.non_finite }] : [];
  return sortable(
    `${kind === "cls" ? "Class" : "Patch"} tokens by view; each line runs from the least to the greatest of its column`,
    [{ title: "View", of: row => row.view, text: true }, ...columns, ...bad],
    rows,
  );
}
