// Predictions of new photographs: as pictures, the most doubtful first if one likes, and as a table with intervals.

import { early, get, withQuery } from "../api.js";
import { span, track } from "../bars.js";
import { thumb } from "../cards.js";
import { alike, amount, axisOf, count, el, fixed, foremost, num, plain, section, select, subsection, twins, unitOf } from "../dom.js";
import { pictureList } from "../list.js";
import { nameOfScore } from "../scores.js";
import { AROUND, given, go, href, photographHref, read } from "../state.js";
import { sortable } from "../table.js";

const FIRST = 24,
  THUMBS = { url: "/v1/predictions", atOnce: 8 }, // each is decoded from its photograph: the first come early
  MOST_ROWS = 2000; // of the table

/** What is predicted of a target, in words: the value, its interval or spread, or how probable a word is. */
export function inWords(target, row) {
  const { name } = target,
    at = end => row[`${name}_${end}`];
  if (target.is_class) return `${row[name] ?? "not known"}${target.probability ? `, probability ${num(at("probability"), 3)}` : ""}`;
  const interval = target.low && target.high ? ` [${amount(name, at("low"))}, ${amount(name, at("high"))}]` : "",
    spread = target.sd ? ` ± ${amount(name, at("sd"))}` : "";
  return `${amount(name, row[name])}${unitOf(name)}${interval || spread}`;
}

/** The address of a page of one of them. */
export const predictionHref = (id, changes = {}) => photographHref(id, { page: "prediction", ...changes });

export async function show({ state, signal, sweep }) {
  const url = "/v1/predictions",
    about = await get(url, signal),
    targets = inOrder(about),
    first = targets.find(target => target.name === (given(state, "target", namesOf(about)) ?? about.target));
  const orders = ordersOf(first),
    order = given(state, "order", Object.keys(orders)) ?? "";
  const tableUrl = withQuery(`${url}/table.json`, { order, target: first.name }),
    rows = early(get(withQuery(tableUrl, { limit: MOST_ROWS }), signal));
  const list = await pictureList({ url: tableUrl, signal, first: FIRST, card: row => card(row, first, order, about) });
  const reorder = changes => stay => go(href({ ...changes, n: null, at: null }), { stay });
  return {
    title: "Predictions",
    content: [
      el(
        "div",
        { class: "controls" },
        select("Order", Object.entries(orders), order, chosen => reorder({ order: chosen || null })("order"), "order"),
        targets.length > 1
          ? select(
              "Target",
              targets.map(({ name }) => [name, plain(name)]),
              first.name,
              chosen => reorder({ target: chosen, order: null })("target"),
              "target",
            )
          : null,
      ),
      el("p", { class: "caption" }, `${count(list.total, "new photograph")} of ${about.name}, with ${plain(first.name)}${beside(first)}`),
      list.root,
      section("All predictions", await table(rows, targets, order), twins(tableUrl, "Predictions")),
      sweep ? await expected(sweep, signal) : null,
    ],
  };
}

const namesOf = about => about.targets.map(({ name }) => name);

/** Targets as they are shown: the weightiest first. */
export const inOrder = about =>
  foremost(namesOf(about), about.target).map(name => about.targets.find(target => target.name === name));

function beside(target) {
  if (target.low && target.high) return " and its interval";
  if (target.sd) return " and the spread over heads and views";
  return "";
}

function ordersOf(target) {
  const { name } = target,
    doubt = target.sd || target.low || target.probability ? { "-doubt": "least certain first", doubt: "most certain first" } : {};
  const values = target.is_class ? { [name]: `by ${plain(name)}` } : { [`-${name}`]: "greatest first", [name]: "least first" };
  return { "": "as in the file", ...doubt, ...values, image_id: "by name" };
}

function card(row, target, order, about) {
  const { image_id: id } = row,
    href = predictionHref(id, { order, target: read().target });
  return el(
    "a",
    { class: "photo", href, "aria-current": read().at === id ? "true" : null },
    el("span", { class: "picture" }, about.has_photographs ? thumb(THUMBS, id) : null),
    el("span", { class: "id" }, id),
    el("span", { class: "small" }, inWords(target, row)),
  );
}

/** A row a photograph; a group of columns a target, the weightiest first. */
async function table(asked, targets, order) {
  const { columns: names, rows: values, total } = await asked,
    rows = values.map(each => Object.fromEntries(each.map((value, k) => [names[k], value])));
  const name = {
    key: "image_id",
    title: "Photograph",
    of: row => row.image_id,
    text: true,
    show: row => el("a", { class: "run", href: predictionHref(row.image_id, { order }) }, row.image_id),
  };
  const some = total > rows.length ? `The first ${rows.length.toLocaleString("en")} predictions in this order; the CSV has all` : "Predictions",
    told = `${some}; a line runs from an interval's end to its other, or over ± sd`;
  return sortable(told, [name, ...targets.flatMap(target => columnsOf(target, rows))], rows, { name: "predictions", choice: true });
}

function columnsOf(target, rows) {
  const { name } = target,
    group = `${plain(name)}${axisOf(name)}`,
    of = end => row => row[`${name}_${end}`];
  if (target.is_class)
    return [
      { key: name, group, title: "word", of: row => row[name], text: true, show: row => row[name] ?? "not known" },
      target.probability && { key: `${name}_probability`, group, title: "probability", of: of("probability") },
    ].filter(Boolean);
  const write = unitOf(name) ? value => fixed(value, 1) : alike(rows.map(row => row[name])),
    ends = endsOf(target),
    range = span(rows.flatMap(row => [row[name], ...ends(row)]));
  const mark = row => track(range, { value: row[name], low: ends(row)[0], high: ends(row)[1], kind: "narrow" });
  return [
    { key: name, group, title: "predicted", of: row => row[name], show: row => write(row[name]) },
    target.low && {
      key: `${name}_low`,
      group,
      title: "interval",
      of: row => of("high")(row) - of("low")(row),
      show: row => `${write(of("low")(row))} to ${write(of("high")(row))}`,
    },
    target.sd && { key: `${name}_sd`, group, title: "± sd", of: of("sd"), show: row => write(of("sd")(row)) },
    { key: `${name}_chart`, group, title: "Chart", plain: true, show: mark },
  ].filter(Boolean);
}

/** row => [low, high] of a target: the interval, else ± sd, else the value alone. */
export function endsOf({ name, low, high, sd }) {
  if (low && high) return row => [row[`${name}_low`], row[`${name}_high`]];
  if (sd) return row => [row[name] - row[`${name}_sd`], row[name] + row[`${name}_sd`]];
  return row => [row[name], row[name]];
}

/** How far such predictions are off: errors of the sweep's best run and of its ridge, out of fold. */
async function expected(sweep, signal) {
  const about = await get(sweep.url, signal),
    runs = about.runs.filter(run => run.has_oof && (run.baseline || run.name === about.best));
  if (!runs.length) return null;
  const score = nameOfScore(about.ranked_by),
    direction = about.larger_is_better ? "" : ", smaller is better";
  const link = ({ name }) => el("a", { class: "run", href: href({ page: "sweeps", sweep: sweep.name, run: name }, AROUND) }, name),
    worst = ({ name }) =>
      el("a", { href: href({ page: "photographs", sweep: sweep.name, run: name, order: "-off" }, AROUND) }, "worst photographs");
  const columns = [
    { key: "name", title: "Run", text: true, of: run => run.name, show: run => el("span", {}, link(run), run.baseline ? " (baseline)" : "") },
    { key: "score", title: score, of: run => run.score, show: run => fixed(run.score, 4) },
    { key: "worst", title: "Errors", text: true, of: run => run.name, show: worst },
  ];
  return subsection(
    "How far such predictions are off",
    sortable(`Out of fold on the training photographs of ${sweep.name}${direction}`, columns, runs, {
      name: "expected",
      sort: "score",
      descending: about.larger_is_better,
    }),
  );
}
