// One run of a sweep: curves by fold, out-of-fold predictions against the truth, photographs by error.

import { table } from "../api.js";
import { hoverCard, photographLink } from "../cards.js";
import { category, css } from "../colours.js";
import { count, el, fixed, grams, num, pending, plain, say, select, signed, subsection, twins } from "../dom.js";
import { lines } from "../lines.js";
import { Scatter } from "../scatter.js";
import { go, photographHref, put } from "../state.js";

const FIRST_WORST = 12,
  EARLY = 0.1; // of the epochs: their scores may be far below, and must not take the whole scale
const CURVES_TOLD = `Thick: all folds together; thin, in its colour: each fold. A click on a point leads to the photographs that its
  fold held out, the worst first, as the last epoch predicts them: of the others no predictions are kept.`;

/** Elements of one run; each part loads, and fails, by itself: a sweep may still be training. */
export function run({ state, signal, store, sweep, name }) {
  const url = `${sweep.url}/runs/${encodeURIComponent(name)}`,
    shown = { target: state.target, split: state.fold ?? "" };
  const view = { url, signal, store, shown, drawOof: () => {}, markCurves: () => {}, toWorst: () => {} };
  view.curves = table(`${url}/curves.json`, signal);
  view.curves.catch(() => {}); // told when it is needed
  view.setSplit = async split => {
    shown.split = split;
    put({ fold: split || null });
    view.markCurves(split);
    await view.drawOof();
  };
  return [
    el("h2", {}, name),
    pending(() => curves(view), "Loading curves …"),
    pending(() => outOfFold(view), "Loading predictions …"),
  ];
}

// A split is what one fold of one repeat held out: "2", or "1.2" (repeat 1, fold 2) of several repeats; "" is all of them.

const several = rows => new Set(rows.map(row => row.repeat).filter(repeat => repeat !== null)).size > 1;
const splitOf = (row, repeats) => (row.fold === null ? "" : repeats ? `${row.repeat}.${row.fold}` : String(row.fold));
const foldOf = split => Number(split.split(".").at(-1));

function nameOf(split) {
  const [fold, repeat] = split.split(".").reverse();
  return split === "" ? "all folds" : `${repeat ? `repeat ${repeat}, ` : ""}fold ${fold}`;
}

async function outOfFold(view) {
  const { url, signal, store, shown } = view,
    all = rowsOf(await table(`${url}/oof.json?averaged=1&weights=last`, signal));
  const targets = [...new Set(all.map(row => row.target))],
    splits = await splitsOf(view, all);
  if (!targets.includes(shown.target)) shown.target = targets.includes("Dry_Total_g") ? "Dry_Total_g" : targets[0];
  if (!splits.includes(shown.split)) shown.split = "";
  const charts = targets.map(target => oofChart(store, all, target)),
    place = el("div");
  const whole = splits[0]?.includes(".") ? "all, averaged over repeats" : "all";
  const options = ["", ...splits].map(split => [split, split ? nameOf(split) : whole]);
  const splitField = select("Fold", options, shown.split, view.setSplit);
  let rows = all;
  const drawWorst = () => place.replaceChildren(worst(store, rows, shown));
  view.drawOof = async () => {
    const { split } = shown,
      found = await rowsOfSplit(view, all, split);
    if (split !== shown.split) return; // another was chosen meanwhile
    rows = found;
    splitField.querySelector("select").value = split;
    charts.forEach(chart => chart.show(rows));
    drawWorst();
  };
  await view.drawOof();
  const setTarget = target => {
    shown.target = target;
    put({ target }, { replace: true });
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
      splits.length > 1
        ? el("div", { class: "controls" }, splitField, all.some(row => row.fold !== null) ? foldLegend(folds) : null)
        : null,
      el(
        "div",
        { class: "small-charts" },
        charts.map(chart => chart.figure),
      ),
      twins(`${url}/oof.json?weights=last`, "Predictions out of fold"),
    ),
    worstSection,
  ];
}

function rowsOf(oof) {
  return Array.from({ length: oof.n }, (_, i) => oof.row(i)).filter(
    row => typeof row.true === "number" && typeof row.predicted === "number",
  );
}

/** The splits there are: of several repeats the averaged rows tell none, the curves do. */
async function splitsOf(view, all) {
  const told = all.some(row => row.fold !== null) ? all : await curveRows(view).catch(() => []),
    repeats = several(told);
  const order = new Intl.Collator(undefined, { numeric: true }).compare;
  return [...new Set(told.map(row => splitOf(row, repeats)))].filter(Boolean).sort(order);
}

/** What is predicted of the photographs that a split held out, by the heads of that split alone. */
async function rowsOfSplit({ url, signal }, all, split) {
  if (!split) return all;
  const repeats = split.includes("."),
    rows = repeats ? rowsOf(await table(`${url}/oof.json?weights=last`, signal)) : all;
  return rows.filter(row => splitOf(row, repeats) === split);
}

function oofChart(store, all, target) {
  const mine = rows => rows.filter(row => row.target === target),
    most = rows => rows.reduce((found, row) => Math.max(found, row.true, row.predicted), 1e-9),
    text = row => `true ${grams(row.true)} g, predicted ${grams(row.predicted)} g`;
  let rows = [],
    end = most(mine(all));
  const chart = new Scatter({
    label: `${plain(target)}: predicted against true`,
    class: "small-chart",
    axes: {
      x: { label: "true, g", format: value => num(value, 3) },
      y: { label: "predicted, g", format: value => num(value, 3) },
    },
    describe: i => `${rows[i].image_id}, ${text(rows[i])}`,
    open: i => go(photographHref(rows[i].image_id)),
    card: i => hoverCard(store, rows[i].image_id, [rows[i].site ?? "", text(rows[i])]),
    below: (ctx, toX, toY, ink) => diagonal(ctx, toX, toY, ink, end),
  });
  const caption = el("figcaption");
  chart.show = shown => {
    rows = mine(shown);
    end = Math.max(end, most(rows));
    chart.extent = [0, end, 0, end];
    const rmse = Math.sqrt(rows.reduce((sum, row) => sum + row.error ** 2, 0) / rows.length);
    caption.textContent = `${plain(target)} · RMSE ${fixed(rmse, 2)} g`;
    chart.set({
      x: Float64Array.from(rows, row => row.true),
      y: Float64Array.from(rows, row => row.predicted),
      colours: Uint32Array.from(rows, row => category(Number(row.fold ?? 0))),
    });
  };
  chart.figure = el("figure", {}, caption, chart.root);
  return chart;
}

function diagonal(ctx, toX, toY, ink, most) {
  ctx.strokeStyle = ink.muted;
  ctx.beginPath();
  ctx.moveTo(toX(0), toY(0));
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

function worst(store, rows, { target, split }) {
  const found = rows.filter(row => row.target === target).sort((a, b) => Math.abs(b.error) - Math.abs(a.error));
  const place = el("div", { class: "photos" }),
    card = row =>
      photographLink(store, row.image_id, [
        `error ${signed(row.error)} g`,
        `true ${grams(row.true)}, predicted ${grams(row.predicted)}`,
        row.site ?? "",
      ]);
  const more = el(
    "button",
    {
      type: "button",
      class: "more",
      onclick: () => {
        place.append(...found.slice(place.children.length, place.children.length + 48).map(card));
        more.hidden = place.children.length >= found.length;
      },
    },
    "Show more",
  );
  place.append(...found.slice(0, FIRST_WORST).map(card));
  more.hidden = found.length <= FIRST_WORST;
  const held = split ? ` held out by ${nameOf(split)}` : "";
  const told = `${count(found.length, "photograph")}${held}, by how far ${plain(target)} is off; grams`;
  return el("div", {}, el("p", { class: "caption" }, told), place, more);
}

async function curveRows(view) {
  const found = await view.curves;
  return Array.from({ length: found.n }, (_, i) => found.row(i));
}

async function curves(view) {
  const { url, shown } = view,
    all = await curveRows(view);
  if (new Set(all.map(row => row.epoch)).size < 2)
    return el("p", { class: "muted" }, "This run was fitted, not trained over epochs: it has no curves.");
  const choose = async split => {
    await view.setSplit(split);
    view.toWorst();
  };
  const chart = (key, title, from = 0) => lines({ title, from, series: seriesOf(all, key), chosen: shown.split, choose });
  const early = Math.ceil(EARLY * all.reduce((most, row) => Math.max(most, row.epoch), 0));
  const charts = [chart("loss", "training loss"), chart("score", "held-out score", early)];
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
