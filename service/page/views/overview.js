// What the store is: what is odd in it first, then counts, targets by groups and date, statistics per view.

import { early, forget, get, table } from "../api.js";
import { span, track } from "../bars.js";
import { hoverCard, photographLink } from "../cards.js";
import { scale } from "../colours.js";
import { day, dayText, monthTicks } from "../dates.js";
import { alike, amount, axisOf, bytes, count, unitOf, withUnit } from "../dom.js";
import { el, facts, foremost, num, pending, plain, problem, section, select, twins } from "../dom.js";
import { inWords, isFiltered, passing } from "../filter.js";
import { details } from "../kept.js";
import { bar, watch } from "../live.js";
import { savers } from "../save.js";
import { Scatter } from "../scatter.js";
import { AROUND, again, given, go, href, listing, photographHref, put, read } from "../state.js";
import { sortable } from "../table.js";

const MOST_ODD = 6;
const STATS = [
  ["mean", "mean"],
  ["std", "standard deviation"],
  ["min", "least"],
  ["max", "greatest"],
  ["norm", "mean norm"],
];

export async function show({ state, signal, store, sweep, failing }) {
  const urls = { odd: `${store.url}/odd.json`, stats: `${store.url}/stats.json` },
    oddRows = early(get(`${urls.odd}?limit=${isFiltered(state) ? 10_000 : 200}`, signal)),
    stats = early(table(urls.stats, signal)),
    passed = early(passing({ state, signal, store, sweep })), // of the filter
    about = await get(`${store.url}/overview.json`, signal),
    ids = await passed;
  return {
    title: store.name,
    content: [
      ...failing.map(each => problem({ message: `${each.name}: ${each.message}` })),
      beingBuilt(store, signal),
      what(store, about),
      section(
        "Odd photographs",
        pending(() => odd(store, about, ids, urls.odd, oddRows)),
      ),
      sweep?.best ? section("Largest errors", worst(sweep.best)) : null,
      section(
        targetsOf(about).length && targetsOf(about).every(unitOf) ? "Masses" : "Targets",
        pending(() => targets({ state, store, sweep, about, signal, ids })),
      ),
      section(
        "Statistics of the tokens",
        pending(() => statistics(urls.stats, stats)),
      ),
    ],
  };
}

/** The way to the errors of a run, the worst first. */
function worst(run) {
  const to = href({ page: "photographs", order: "-off" }, AROUND);
  return el("p", {}, el("a", { href: to }, "All photographs, the worst errors first"), ` as ${read().run ?? run} predicts them out of fold`);
}

/** How far a build is; null where none is under way. */
function beingBuilt(store, signal) {
  if (!store.being_built) return null;
  const place = el("div", { class: "progress" });
  const tell = ({ stores }) => {
    const now = stores.find(each => each.name === store.name);
    if (!now?.being_built) {
      forget();
      again();
      return null;
    }
    const of = `${now.n_sealed.toLocaleString("en")} of ${count(now.n_images, "photograph")} sealed`;
    place.replaceChildren(
      el("p", { class: "told" }, el("strong", {}, "Being built"), ` · ${of}; below is what was sealed when this page was opened`),
      bar(now.n_sealed, now.n_images, "Sealed photographs"),
    );
    return true;
  };
  watch("/v1/stores", signal, tell);
  return place;
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

/** ids: of the photographs that pass the filter; null where all do. */
async function odd(store, about, ids, url, oddRows) {
  if (!about.odd) return el("p", {}, "None: every token is finite, and no photograph's statistics lie far from the others'.");
  const found = await oddRows;
  const at = Object.fromEntries(found.columns.map((name, i) => [name, i])),
    byImage = new Map(),
    rows = ids ? found.rows.filter(row => ids.has(row[at.image_id])) : found.rows;
  if (!rows.length) return [el("p", {}, "None of the photographs that pass the filter."), twins(url, "Odd photographs")];
  for (const row of rows) if (!byImage.has(row[at.image_id])) byImage.set(row[at.image_id], row);
  const among = listing([...byImage.keys()]);
  const cards = [...byImage.values()]
    .slice(0, MOST_ODD)
    .map(row =>
      photographLink(
        store,
        row[at.image_id],
        [`${row[at.what].replace(/_/g, " ")}, view ${row[at.view]}`, `${num(row[at.value])}, typically ${num(row[at.typical])}`],
        { changes: { view: row[at.view], among } },
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
    details(
      "odd",
      `As a table (${(ids ? rows.length : found.total).toLocaleString("en")})`,
      sortable(
        "Odd photographs, worst first",
        columns.map(([title, name], k) => ({
          key: name,
          title,
          of: row => row[at[name]],
          text: k < 3,
          show: k ? null : row => el("a", { href: photographHref(row[at.image_id], { view: row[at.view], among }) }, row[at.image_id]),
        })),
        rows,
        { name: "odd" },
      ),
    ),
    twins(url, "Odd photographs"),
  ];
}

/** Names of the targets there are. */
const targetsOf = about => about.targets.all.map(row => row.target);

async function targets({ state, store, sweep, about, signal, ids }) {
  const url = `${store.url}/catalog.json`,
    names = store.columns;
  const known = names.filter(name => targetsOf(about).includes(name)), // in the catalog's order
    targets = foremost(known, about.target);
  if (!targets.length) return [byClass(about), twins(url, "Catalog")];
  const place = el("div", { class: "beside" });
  let chosen = await targetOf({ state, sweep, signal }, targets, about.target);
  const draw = async () => {
    const columns = ["image_id", "State", "Sampling_Date", chosen].filter(name => names.includes(name));
    const rows = await table(`${url}?columns=${columns.map(encodeURIComponent).join(",")}`, signal);
    const dates = byDate(store, about, rows, chosen, ids);
    place.replaceChildren(...[...byGroup(about, chosen), dates].filter(Boolean));
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

/** The target of the address, if it is one here; the first where only the sweep has it: the filter is one for all pages. */
async function targetOf({ state, sweep, signal }, own, first) {
  if (!state.target || own.includes(state.target)) return state.target ?? first;
  const others = sweep ? (await get(sweep.url, signal)).targets : [];
  given(state, "target", [...own, ...others]);
  return first;
}

/** [{ name, n, mean, sd }] of a target by a column of the catalog, as the server counts them. */
const groups = (about, column, target) =>
  (about.targets[column] ?? [])
    .filter(row => row.target === target && row.count)
    .map(({ group, count, mean, sd }) => ({ name: group, n: count, mean, sd }));

/** Where there are no numbers: how many photographs have each word of each column that could be a class. */
function byClass(about) {
  const tables = Object.entries(about.classes).map(([column, counts]) =>
    sortable(
      `Photographs by ${plain(column)}`,
      [
        { title: plain(column), of: ([word]) => word, text: true, show: ([word]) => onMap(column, word) },
        { title: "Photographs", of: ([, n]) => n },
      ],
      Object.entries(counts),
      { name: `by.${column}`, sort: "Photographs", descending: true },
    ),
  );
  return tables.length
    ? el("div", { class: "beside" }, tables)
    : el("p", {}, "No column of the catalog could be a target.");
}

const onMap = (column, text) => el("a", { href: href({ page: "map", colour: column }, ["store", "sweep"]) }, text);

/** A table for each column that groups photographs. */
const byGroup = (about, target) =>
  Object.keys(about.targets)
    .filter(column => column !== "all" && column !== "Sampling_Date")
    .map(column => ofColumn(about, column, target));

/** A name narrows the filter to its photographs, and once more lets all pass again. */
function ofColumn(about, column, target) {
  const found = groups(about, column, target);
  if (!found.length) return null;
  const range = span(
    found.flatMap(each => [each.mean - (each.sd ?? 0), each.mean + (each.sd ?? 0)]),
    true,
  );
  const chosen = read()[`in.${column}`],
    press = name => go(href({ [`in.${column}`]: name === chosen ? null : name }), { stay: `${column}.${name}` });
  const word = ({ name }) => {
    if (!name) return "not known";
    const pressed = String(name === chosen),
      stay = `${column}.${name}`;
    return el(
      "button",
      { type: "button", class: "link", "aria-pressed": pressed, "data-stay": stay, onclick: () => press(name) },
      name,
    );
  };
  const write = unitOf(target) ? value => amount(target, value) : alike(found.flatMap(each => [each.mean, each.sd]), 3);
  const told = "over all photographs; a name shows its photographs alone, on every page";
  return sortable(
    `${plain(target)}${unitOf(target) ? " in grams" : ""} by ${plain(column)}: mean ± standard deviation ${told}`,
    [
      { title: plain(column), of: row => row.name, text: true, show: word },
      { title: "Photographs", of: row => row.n },
      { title: "Mean", of: row => row.mean, show: row => write(row.mean) },
      { title: "sd", of: row => row.sd, show: row => write(row.sd) },
      {
        plain: true,
        show: row =>
          track(range, { value: row.mean, low: row.mean - row.sd, high: row.mean + row.sd, marks: [{ value: 0, kind: "zero" }] }),
      },
    ],
    found,
    { name: `by.${column}`, sort: "Mean", descending: true },
  );
}

/** ids: of the photographs that are drawn; null for all. */
function byDate(store, about, rows, target, drawn) {
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
      x: { label: "date", format: dayText, ticks: monthTicks, room: 75 },
      y: { label: `${plain(target)}${axisOf(target)}`, format: value => num(value, 3) },
    },
    describe: i => `${ids[i]}, ${dates[i]}, ${amount(target, values[i])}${unitOf(target) && " grams"}`,
    open: i => go(photographHref(ids[i])),
    card: i =>
      hoverCard(store, ids[i], [`${dates[i]} ${rows.column("State")?.[i] ?? ""}`, `${plain(target)} ${withUnit(target, values[i])}`]),
    above: (ctx, toX, toY, ink) => drawn || whiskers(ctx, means, toX, toY, ink),
  });
  const whole = "photographs as points, mean ± standard deviation of each day as a cross",
    what = drawn ? `the photographs of ${inWords(read())} alone` : whole,
    caption = el("figcaption", {}, `${plain(target)} by date: ${what}`);
  chart.set({ x, y, colours: colour.packed, shown: drawn && Uint8Array.from(ids, id => Number(drawn.has(id))) });
  chart.mark(ids.indexOf(read().at));
  return el("figure", {}, caption, chart.root, colour.legend, savers(caption.textContent, chart, () => colour.legend));
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

async function statistics(url, stats) {
  const found = await stats,
    all = found.rows();
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
    const range = span(rows.map(row => row[name])),
      write = alike(rows.map(row => row[name]));
    return {
      title,
      of: row => row[name],
      show: row => el("span", { class: "tracked" }, track(range, { value: row[name], kind: "narrow" }), write(row[name])),
    };
  });
  const map = row => el("a", { href: href({ page: "map", view: row.view }, ["store", "sweep"]) }, row.view);
  const bad = rows.some(row => row.non_finite) ? [{ title: "not finite", of: row => row.non_finite }] : [];
  return sortable(
    `${kind === "cls" ? "Class" : "Patch"} tokens by view; lines run from a column's least to its greatest; a view's name opens its map`,
    [{ title: "View", of: row => row.view, text: true, show: map }, ...columns, ...bad],
    rows,
    { name: `tokens.${kind}` },
  );
}
