// One run of a sweep: curves by fold, out-of-fold predictions against the truth, photographs by error.

import { early, get, table, withQuery } from "../api.js";
import { hoverCard } from "../cards.js";
import { category, css } from "../colours.js";
import { axisOf, count, fixed, num, unitOf, withUnit } from "../dom.js";
import { el, foremost, pending, plain, say, select, subsection, twins } from "../dom.js";
import { filtered, inWords, isFiltered } from "../filter.js";
import { lines } from "../lines.js";
import { photographList } from "../list.js";
import { savers } from "../save.js";
import { everyOf, Scatter } from "../scatter.js";
import { nameOfScore } from "../scores.js";
import { comparable } from "../sides.js";
import { given, go, href, photographHref, put, read } from "../state.js";
import { sortable } from "../table.js";

const FIRST_WORST = 12,
  EARLY = 0.1; // of the epochs: their scores may be far below, and must not take the whole scale
const CURVES_TOLD = `Thick: all folds together; thin, in its colour: each fold. A click on a point leads to the photographs that its
  fold held out, the worst first, as the last epoch predicts them: of the others no predictions are kept.`;

const NO_CURVES = "Curves begin with the second epoch; what is fitted has none.";
const NO_OOF = "It has no predictions out of fold: they come when the sweep is finished, and not to what learns from every photograph.";

const POINT = "image_id,site,fold,target,true,predicted"; // columns that a chart needs
const OF_ALL = { averaged: 1 };
const urlOf = (sweep, name) => `${sweep.url}/runs/${encodeURIComponent(name)}`,
  curvesOf = url => `${url}/curves.json`,
  errorsOf = url => withQuery(`${url}/errors.json`, OF_ALL);

/** Ask for what a run's page shows before it is drawn; gives its curves. */
export function askOfRun(sweep, name, signal, hasOof = false) {
  const url = urlOf(sweep, name);
  if (hasOof) early(get(errorsOf(url), signal));
  return early(table(curvesOf(url), signal));
}

/** Elements of one run; each part loads, and fails, by itself: a sweep may still be training. */
export function run({ state, signal, store, sweep, about, name, among }) {
  const url = urlOf(sweep, name),
    shown = { target: state.target, split: state.fold ?? "" };
  const view = { url, signal, store, sweep, name, state, about, shown, drawOof: () => {}, markCurves: () => {}, toWorst: () => {} };
  view.curves = early(table(curvesOf(url), signal));
  view.setSplit = async split => {
    shown.split = split;
    put({ fold: split || null, n: null });
    view.markCurves(split);
    await view.drawOof();
  };
  const hasOof = comparable(about).includes(name);
  return [
    el("h2", {}, name, among ? el("span", { class: "muted" }, ` of ${among}`) : null),
    hasOof
      ? el("p", {}, el("a", { href: href({ page: "compare", a: `${sweep.name}/${name}` }, ["store"]) }, "Compare with another run"))
      : null,
    pending(() => curves(view), "Loading curves …"),
    hasOof ? pending(() => outOfFold(view), "Loading predictions …") : el("p", { class: "muted" }, NO_OOF),
  ];
}

// A split is what one fold of one repeat held out: "2", or "1.2" (repeat 1, fold 2) of several repeats; "" is all of them.

const foldOf = split => Number(split.split(".").at(-1));

function nameOf(split) {
  const [fold, repeat] = split.split(".").reverse();
  return split === "" ? "all folds" : `${repeat ? `repeat ${repeat}, ` : ""}fold ${fold}`;
}

async function outOfFold(view) {
  const { url, signal, store, about, shown } = view,
    all = await get(errorsOf(url), signal),
    byTarget = figuresOf(all),
    targets = foremost(
      about.targets.filter(target => byTarget.has(target)),
      about.target,
    ),
    splits = await splitsOf(view, all);
  const first = targets.includes(about.target) ? about.target : targets[0];
  shown.target = targetOf(view, targets, first);
  given({ fold: shown.split }, "fold", splits);
  const isClass = target => byTarget.get(target).words !== undefined,
    tables = targets.filter(isClass).map(target => confusion(byTarget.get(target))),
    numbers = targets.filter(target => !isClass(target)).map(target => oofChart(store, byTarget.get(target))),
    charts = [...numbers, ...tables],
    place = el("div");
  const whole = splits[0]?.includes(".") ? "all, averaged over repeats" : "all";
  const options = ["", ...splits].map(split => [split, split ? nameOf(split) : whole]);
  const splitField = select("Fold", options, shown.split, view.setSplit);
  const drawn = el("p", { class: "muted", hidden: true });
  const drawWorst = async () => {
    const { target, split } = shown,
      made = await worst(view, isClass(target));
    if (target === shown.target && split === shown.split) place.replaceChildren(...made); // else another was chosen meanwhile
  };
  view.drawOof = async () => {
    place.setAttribute("aria-busy", "true");
    const { split } = shown,
      asked = askedOf(view),
      told = figuresOf(await get(`${url}/errors.json?${asked}`, signal)),
      points = await pointsOf(url, asked, numbers, told, signal);
    if (split !== shown.split) return; // another was chosen meanwhile
    splitField.querySelector("select").value = split;
    charts.forEach(chart => chart.show(told.get(chart.target), points.rows));
    drawn.hidden = points.every === null;
    drawn.textContent = `The charts draw one in ${points.every} photographs; the errors above them are of all`;
    await drawWorst();
    place.removeAttribute("aria-busy");
  };
  await view.drawOof();
  const setTarget = target => {
    shown.target = target;
    put({ target, n: null }, { replace: true });
    drawWorst();
  };
  const folds = [...new Set(splits.map(foldOf))].sort((a, b) => a - b);
  const worstSection = subsection(
    "Worst photographs",
    el(
      "div",
      { class: "controls" },
      select(
        "Target",
        targets.map(target => [target, plain(target)]),
        shown.target,
        setTarget,
      ),
    ),
    place,
  );
  view.toWorst = () => {
    worstSection.scrollIntoView({ block: "start" });
    worstSection.querySelector("h3").focus({ preventScroll: true });
    say(`Worst photographs, ${place.querySelector(".caption").textContent}`);
  };
  return [
    subsection(
      "Out of fold",
      isFiltered({ ...view.state, fold: null }) ? el("p", { class: "caption" }, `Only photographs that pass the filter: ${inWords({ ...view.state, fold: null })}`) : null,
      splits.length > 1
        ? el("div", { class: "controls" }, splitField, all.folds.length ? foldLegend(folds) : null)
        : null,
      drawn,
      ...[
        ["small-charts", numbers],
        ["confusions", tables],
      ].map(([name, made]) =>
        el(
          "div",
          { class: name },
          made.map(chart => chart.figure),
        ),
      ),
      twins(`${url}/oof.json?weights=last`, "Predictions out of fold"),
    ),
    worstSection,
  ];
}

const figuresOf = ({ targets }) => new Map(targets.map(each => [each.target, each]));

/** What is shown of a run, as the query that the server knows it by: a fold, and what passes the filter. */
function askedOf({ store, sweep, name, state, shown }) {
  const fold = shown.split || null,
    isNarrowed = isFiltered({ ...state, fold: null }),
    narrowed = filtered("", { state: { ...state, run: name, fold, target: shown.target }, sweep }, { store: store.name });
  return withQuery(isNarrowed ? narrowed : withQuery("", { fold }), OF_ALL).slice(1);
}

/** { rows, every }: what the charts of numbers draw, one in `every` photographs. */
async function pointsOf(url, asked, charts, told, signal) {
  const n = charts.reduce((sum, { target }) => sum + (told.get(target)?.n ?? 0), 0),
    every = everyOf(n);
  if (!n) return { rows: [], every };
  const found = await table(withQuery(`${url}/oof.json?${asked}`, { columns: POINT, every }), signal);
  return { rows: found.rows().filter(row => isNumber(row.true) && isNumber(row.predicted)), every };
}

const isNumber = value => typeof value === "number";

/** The target of the address, if this run has it; its first where only the store does: the filter is one for all pages. */
function targetOf({ state, store }, own, first) {
  if (!state.target || own.includes(state.target)) return state.target ?? first;
  given(state, "target", [...own, ...store.columns]);
  return first;
}

/** The splits there are: averages over repeats tell none, the curves do. */
async function splitsOf(view, all) {
  if (all.folds.length) return all.folds;
  const told = await curveRows(view).catch(() => []),
    repeats = several(told);
  return [...new Set(told.map(row => splitOf(row, repeats)))].filter(Boolean).sort(order);
}

const order = new Intl.Collator(undefined, { numeric: true }).compare;
const several = rows => new Set(rows.map(row => row.repeat).filter(repeat => repeat !== null)).size > 1;
const splitOf = (row, repeats) => (row.fold === null ? "" : repeats ? `${row.repeat}.${row.fold}` : String(row.fold));

/** How many photographs of each true word are predicted as each word. */
function confusion({ target, words: all }) {
  const words = [...all].sort(order);
  const caption = el("figcaption"),
    place = el("div");
  const show = ({ words: told, counts, accuracy } = { words: [] }) => {
    const counted = (truth, word) => counts?.[told.indexOf(truth)]?.[told.indexOf(word)] ?? 0;
    const columns = [
      { title: "true", of: truth => truth, text: true },
      ...words.map(word => ({
        title: word,
        of: truth => counted(truth, word),
        show: truth => el(truth === word ? "strong" : "span", {}, String(counted(truth, word))),
      })),
    ];
    caption.textContent = `${plain(target)} · accuracy ${fixed(accuracy, 3)}`;
    place.replaceChildren(
      sortable(`Photographs by ${plain(target)}: rows are true, columns predicted words`, columns, words, {
        name: `words.${target}`,
      }),
    );
  };
  return { target, show, figure: el("figure", {}, caption, place) };
}

function oofChart(store, { target, least, most }) {
  const text = row => `true ${withUnit(target, row.true)}, predicted ${withUnit(target, row.predicted)}`;
  let rows = [],
    start = Math.min(0, least), // of a level, which may be below 0
    end = Math.max(most, 1e-9);
  const chart = new Scatter({
    label: `${plain(target)}: predicted against true`,
    class: "small-chart",
    axes: {
      x: { label: `true${axisOf(target)}`, format: value => num(value, 3) },
      y: { label: `predicted${axisOf(target)}`, format: value => num(value, 3) },
    },
    describe: i => `${rows[i].image_id}, ${text(rows[i])}`,
    open: i => go(photographHref(rows[i].image_id, { target, order: "-off" })), // and on to the next worst
    card: i => hoverCard(store, rows[i].image_id, [rows[i].site ?? "", text(rows[i])]),
    below: (ctx, toX, toY, ink) => diagonal(ctx, toX, toY, ink, start, end),
  });
  const caption = el("figcaption");
  chart.target = target;
  chart.show = ({ rmse = NaN, ...told } = {}, points) => {
    rows = points.filter(row => row.target === target);
    start = Math.min(start, told.least ?? start); // a fold's heads may go further than their average
    end = Math.max(end, told.most ?? end);
    chart.extent = [start, end, start, end];
    const written = unitOf(target) ? fixed(rmse, 2) : num(rmse, 3);
    caption.textContent = `${plain(target)} · RMSE ${written}${unitOf(target)}`;
    chart.set({
      x: Float64Array.from(rows, row => row.true),
      y: Float64Array.from(rows, row => row.predicted),
      colours: Uint32Array.from(rows, row => category(Number(row.fold ?? 0))),
    });
  };
  chart.figure = el(
    "figure",
    {},
    caption,
    chart.root,
    savers(() => caption.textContent, chart),
  );
  return chart;
}

function diagonal(ctx, toX, toY, ink, least, most) {
  ctx.strokeStyle = ink.muted;
  ctx.beginPath();
  ctx.moveTo(toX(least), toY(least));
  ctx.lineTo(toX(most), toY(most));
  ctx.stroke();
}

function foldLegend(folds) {
  const chip = fold => {
    const dot = el("i", { "aria-hidden": "true" });
    dot.style.backgroundColor = css(category(fold));
    return el("span", { class: "chip" }, dot, `fold ${fold}`);
  };
  return el("div", { class: "legend" }, folds.map(chip));
}

/** By how far they are off, as the list of photographs has them. */
async function worst(view, isClass) {
  const { store, sweep, name, state, shown, signal } = view,
    { target, split } = shown,
    asked = { ...state, ...read(), fold: split };
  const list = await photographList({ store, sweep, state: asked, signal }, { order: "-off", target, run: name, first: FIRST_WORST });
  const held = split ? ` held out by ${nameOf(split)}` : "",
    unit = unitOf(target) ? "; grams" : "",
    order = isClass
      ? `the least probability of the true ${plain(target)} first`
      : `by how far ${plain(target)} is off${unit}`,
    narrowed = inWords({ ...asked, fold: null });
  const caption = `${count(list.total, "photograph")}${held}, ${order}${narrowed && `; ${narrowed}`}`,
    none = el("p", {}, `No photograph of ${store.name} that this run predicts passes the filter.`);
  return [el("p", { class: "caption" }, caption), list.total ? list.root : none, twins(list.url, "Worst photographs")];
}

async function curveRows(view) {
  const found = await view.curves;
  return found.rows();
}

async function curves(view) {
  const { url, about, shown, name } = view;
  if (about.blends.some(blend => blend.name === name))
    return el("p", { class: "muted" }, "A blend averages runs: it has no curves of its own.");
  const all = await curveRows(view);
  if (new Set(all.map(row => row.epoch)).size < 2)
    return el("p", { class: "muted" }, about.finished ? "This run was fitted, not trained over epochs: it has no curves." : NO_CURVES);
  const choose = async split => {
    await view.setSplit(split);
    view.toWorst();
  };
  const chart = (key, title, from = 0) => lines({ title, from, series: seriesOf(all, key), chosen: shown.split, choose });
  const early = Math.ceil(EARLY * all.reduce((most, row) => Math.max(most, row.epoch), 0));
  const title = about.ranked_by === "contest" ? "held-out score" : `held-out ${nameOfScore(about.ranked_by)}`;
  // where smaller is better the first epochs lie above
  const charts = [chart("loss", "training loss"), chart("score", title, about.larger_is_better ? early : 0)];
  view.markCurves = split => charts.forEach(each => each.mark(split));
  return subsection(
    "Curves",
    el("p", { class: "caption" }, CURVES_TOLD),
    el(
      "div",
      { class: "pair" },
      charts.map(each => each.root),
    ),
    twins(`${url}/curves.json`, "Curves"),
  );
}

/** One curve a split in its fold's colour, and the rows of all folds together in full. */
function seriesOf(all, value) {
  const splits = new Map(),
    repeats = several(all);
  for (const row of all) {
    const split = splitOf(row, repeats);
    splits.set(split, [...(splits.get(split) ?? []), row]);
  }
  const made = [...splits].map(([split, rows]) => ({
    name: nameOf(split),
    key: split,
    x: rows.map(row => row.epoch),
    y: rows.map(row => row[value] ?? NaN),
    strong: split === "",
    colour: split === "" ? null : css(category(foldOf(split))),
  }));
  return made.sort((a, b) => a.strong - b.strong); // the strong one is drawn last, on top
}
