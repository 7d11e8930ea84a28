// One run of a sweep: curves by fold, out-of-fold predictions against the truth, photographs by error.

import { table } from "../api.js";
import { hoverCard, photographLink } from "../cards.js";
import { category, css } from "../colours.js";
import { el, grams, num, pending, plain, section, select, signed, twins } from "../dom.js";
import { lines } from "../lines.js";
import { Scatter } from "../scatter.js";
import { go, photographHref, put } from "../state.js";

const FIRST_WORST = 12,
  SCORE_FLOOR = -0.5; // the first epochs may be far below; the end is what matters

/** Elements of one run; each part loads, and fails, by itself: a sweep may still be training. */
export function run({ state, signal, store, sweep, name }) {
  const url = `${sweep.url}/runs/${encodeURIComponent(name)}`,
    shown = { target: state.target, fold: state.fold ?? "" };
  const view = { url, signal, store, shown, place: el("div"), drawOof: () => {}, drawCurves: () => {} };
  view.setFold = fold => {
    shown.fold = String(fold);
    put({ fold: shown.fold || null }, { replace: true });
    view.drawOof();
    view.drawCurves();
  };
  return [
    el("h2", {}, name),
    pending(() => curves(view), "Loading curves …"),
    pending(() => outOfFold(view), "Loading predictions …"),
  ];
}

async function outOfFold(view) {
  const { url, signal, store, shown } = view,
    oof = await table(`${url}/oof.json?averaged=1&weights=last`, signal);
  const targets = [...new Set(oof.column("target"))],
    folds = [...new Set(oof.column("fold"))].filter(fold => fold !== null).sort((a, b) => a - b);
  if (!targets.includes(shown.target)) shown.target = targets.includes("Dry_Total_g") ? "Dry_Total_g" : targets[0];
  if (!folds.map(String).includes(shown.fold)) shown.fold = "";
  const rows = rowsOf(oof),
    charts = targets.map(target =>
      oofChart(
        store,
        rows.filter(row => row.target === target),
        target,
      ),
    ),
    place = el("div");
  const foldField = select("Fold", [["", "all"], ...folds.map(fold => [String(fold), String(fold)])], shown.fold, view.setFold);
  const drawWorst = () => place.replaceChildren(worst(store, rows, shown));
  view.drawOof = () => {
    foldField.querySelector("select").value = shown.fold;
    charts.forEach(chart => chart.only(shown.fold));
    drawWorst();
  };
  view.drawOof();
  const setTarget = target => {
    shown.target = target;
    put({ target }, { replace: true });
    drawWorst();
  };
  return [
    section(
      "Out of fold",
      folds.length > 1 ? el("div", { class: "controls" }, foldField, foldLegend(folds)) : null,
      el(
        "div",
        { class: "small-charts" },
        charts.map(chart => chart.figure),
      ),
      twins(`${url}/oof.json?weights=last`, "Predictions out of fold"),
    ),
    section(
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
    ),
  ];
}

function rowsOf(oof) {
  return Array.from({ length: oof.n }, (_, i) => oof.row(i)).filter(
    row => typeof row.true === "number" && typeof row.predicted === "number",
  );
}

function oofChart(store, rows, target) {
  const x = Float64Array.from(rows, row => row.true),
    y = Float64Array.from(rows, row => row.predicted);
  const most = Math.max(...x, ...y, 1e-9),
    rmse = Math.sqrt(rows.reduce((sum, row) => sum + row.error ** 2, 0) / rows.length);
  const text = row => `true ${grams(row.true)} g, predicted ${grams(row.predicted)} g`;
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
    below: (ctx, toX, toY, ink) => diagonal(ctx, toX, toY, ink, most),
  });
  chart.extent = [0, most, 0, most];
  const colours = Uint32Array.from(rows, row => category(Number(row.fold ?? 0)));
  chart.only = fold =>
    chart.set({ x, y, colours, shown: fold === "" ? null : Uint8Array.from(rows, row => Number(String(row.fold) === fold)) });
  chart.figure = el("figure", {}, el("figcaption", {}, `${plain(target)} · RMSE ${num(rmse, 3)} g`), chart.root);
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
    dot.style.backgroundColor = css(category(Number(fold)));
    return el("span", { class: "chip" }, dot, `fold ${fold}`);
  };
  return el("div", { class: "legend" }, folds.map(chip));
}

function worst(store, rows, { target, fold }) {
  const found = rows
    .filter(row => row.target === target && (fold === "" || String(row.fold) === fold))
    .sort((a, b) => Math.abs(b.error) - Math.abs(a.error));
  const place = el("div", { class: "photos" }),
    card = row =>
      photographLink(store, row.image_id, [
        `${signed(row.error)} g`,
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
  return el("div", {}, place, more);
}

async function curves(view) {
  const { url, signal, shown } = view,
    found = await table(`${url}/curves.json`, signal),
    all = Array.from({ length: found.n }, (_, i) => found.row(i));
  if (new Set(all.map(row => row.epoch)).size < 2)
    return el("p", { class: "muted" }, "This run was fitted, not trained over epochs: it has no curves.");
  const scores = all.map(row => row.score).filter(Number.isFinite),
    place = el("div", { class: "pair" });
  const choose =
    new Set(all.map(row => row.repeat).filter(repeat => repeat !== null)).size > 1
      ? null
      : name => view.setFold(name.replace("fold ", ""));
  const chart = (key, title, range) =>
    lines({ title, range, series: seriesOf(all, key), chosen: shown.fold && `fold ${shown.fold}`, choose });
  view.drawCurves = () =>
    place.replaceChildren(
      chart("loss", "training loss", null),
      chart("score", "held-out score", [Math.max(SCORE_FLOOR, Math.min(...scores, 0)), 1]),
    );
  view.drawCurves();
  return section("Curves", place, twins(`${url}/curves.json`, "Curves"));
}

/** One pale curve a split, and the rows of all folds together in full. */
function seriesOf(all, key) {
  const splits = new Map(),
    repeats = new Set(all.map(row => row.repeat).filter(repeat => repeat !== null)).size > 1;
  for (const row of all) {
    const name = row.fold === null ? "all folds" : `${repeats ? `repeat ${row.repeat}, ` : ""}fold ${row.fold}`;
    splits.set(name, [...(splits.get(name) ?? []), row]);
  }
  const made = [...splits].map(([name, rows]) => ({
    name,
    x: rows.map(row => row.epoch),
    y: rows.map(row => row[key] ?? NaN),
    strong: name === "all folds",
  }));
  return made.sort((a, b) => a.strong - b.strong); // the strong one is drawn last, on top
}
