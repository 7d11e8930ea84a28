// Two runs, of one sweep or of two: what differs in their settings, scores with the paired difference, curves on one another,
// and error against error, a point a photograph.

import { columnar, early, get, table, withQuery } from "../api.js";
import { span, track } from "../bars.js";
import { gallery, hoverCard } from "../cards.js";
import { category, css, scale } from "../colours.js";
import { axisOf, count, fixed, num, plain, signed, unitOf } from "../dom.js";
import { el, foremost, pending, problem, section, select, subsection, twins, withSign } from "../dom.js";
import { filtered, isFiltered } from "../filter.js";
import { lines } from "../lines.js";
import { savers } from "../save.js";
import { everyOf, Scatter } from "../scatter.js";
import { nameOfScore } from "../scores.js";
import { besideUrl, chooseSides, sidesOf } from "../sides.js";
import { given, go, href, photographHref, put } from "../state.js";
import { sortable } from "../table.js";

const COLOURS = [category(0), category(5)],
  MOST_LISTED = 300, // photographs on which they differ most
  EARLY = 0.1, // of the epochs: their scores may be far below
  CHOOSE = "Choose a trained head as run A or B to see its curves.";

export async function show({ state, signal, store, sweep, sweeps }) {
  if (!sweeps.length)
    return { title: "Compare", content: [el("p", {}, "No sweep is served. Start the service with --sweep DIR to compare runs here.")] };
  const sides = await sidesOf(state, sweeps, signal),
    [a, b] = sides,
    url = besideUrl(a, b),
    named = legend(sides);
  const scores = early(table(`${url}/scores.json`, signal));
  return {
    title: "Compare",
    content: [
      chooseSides(sides, sweeps),
      named,
      section(
        "Scores",
        pending(() => scoreTable(scores, a, `${url}/scores.json`), "Comparing …"),
      ),
      section(
        "Settings",
        pending(() => settings(sides, signal)),
      ),
      section(
        "Curves",
        pending(() => curves(sides, signal, named)),
      ),
      section(
        "Errors of the same photographs",
        pending(() => errors({ state, signal, store, sweep, a, url, named })),
      ),
    ],
  };
}

function legend(sides) {
  const chip = ({ letter, sweep, run }, k) => {
    const dot = el("i", { "aria-hidden": "true" });
    dot.style.backgroundColor = css(COLOURS[k]);
    const to = href({ page: "sweeps", sweep: sweep.name, run }, ["store"]);
    return el("span", { class: "chip" }, dot, `${letter} `, el("a", { class: "run", href: to }, run), ` of ${sweep.name}`);
  };
  return el("div", { class: "legend" }, sides.map(chip));
}

// -- scores

async function scoreTable(asked, a, url) {
  const found = await asked,
    rows = found.rows();
  if (!rows.length) return el("p", {}, "They have no target in common.");
  const ranges = new Map();
  for (const kind of new Set(rows.map(kindOf)))
    ranges.set(kind, span(rows.filter(row => kindOf(row) === kind).flatMap(row => [row.difference, row.low, row.high]), true));
  const digits = row => (unitOf(row.target ?? "") && kindOf(row) !== "share" ? 2 : 4);
  const columns = [
    { title: "Score", of: nameOfRow, text: true, show: nameOfRow },
    { title: "B − A [95 %]", of: row => row.difference, show: row => withInterval(row, digits(row)) },
    {
      plain: true,
      show: row =>
        track(ranges.get(kindOf(row)), {
          value: row.difference,
          low: row.low,
          high: row.high,
          marks: [{ value: 0, kind: "zero" }],
          kind: row.apart ? "" : "pale",
        }),
    },
    ...["a", "b"].map(key => ({ title: key.toUpperCase(), of: row => row[key], show: row => fixed(row[key], digits(row)) })),
    { title: "Better", of: better, text: true },
  ];
  const { n_images, n_sites, n_repeats } = rows[0];
  const told = `Out of fold, on ${count(n_images, "photograph")} of ${count(n_sites, "site")} that both predicted${n_repeats > 1 ? `, mean over ${n_repeats} repeats` : ""}; intervals by drawing sites anew, for both alike`;
  return [el("p", {}, inWords(rows[0], digits(rows[0]))), sortable(told, columns, rows, { name: "scores" }), twins(url, "Scores")];
}

/** Scores that are drawn on one line: shares and amounts of grams have lines of their own. */
const kindOf = ({ score, target }) => (["rmse", "mae"].includes(score) ? `${score} ${target ?? ""}` : score === "log_loss" ? score : "share");
const nameOfRow = ({ score, target }) =>
  target ? `${nameOfScore(score)} ${plain(target)}${["rmse", "mae"].includes(score) ? unitOf(target) && ", g" : ""}` : nameOfScore(score);

function withInterval({ difference, low, high }, digits) {
  if (!Number.isFinite(difference)) return "not known";
  const sign = value => withSign(value, fixed(Math.abs(value), digits), "+"),
    known = [low, high].every(Number.isFinite);
  return `${sign(difference)}${known ? ` [${sign(low)}, ${sign(high)}]` : ", interval not known"}`;
}

/** Whose score is better, as far as the interval tells. */
function better({ difference, apart, larger_is_better: larger }) {
  if (!Number.isFinite(difference)) return "not known";
  return apart ? (difference > 0 === larger ? "B" : "A") : "not told apart";
}

function inWords(row, digits) {
  const name = nameOfRow(row),
    [first, other] = better(row) === "A" ? ["A", "B"] : ["B", "A"];
  if (!Number.isFinite(row.difference)) return `How far apart they are in ${name} is not known.`;
  if (!Number.isFinite(row.low)) return `With ${count(row.n_sites, "site")} no interval of the difference in ${name} can be told.`;
  if (!row.apart) return `Their ${name}s cannot be told apart: on other sites either may be the better one.`;
  return `The ${name} of ${first} is better than that of ${other}: B − A is ${withInterval(row, digits)}.`;
}

// -- settings

/** What differs: of the keys of both configs, or where one is a blend of the sweeps' words and the grid's values. */
async function settings(sides, signal) {
  const parameters = sides.map(({ about, run }) => about.runs.find(each => each.name === run)?.parameters ?? {}),
    configs = await Promise.all(sides.map(side => configOf(side, signal))),
    isWhole = configs.every(Boolean);
  const all = isWhole ? configs : sides.map(({ sweep, about }, k) => ({ sweep: sweep.name, ...about.settings, ...parameters[k] }));
  const [a, b] = all,
    isShown = name => !isWhole || parameters.some(own => name in own) || (name in a && name in b), // else one kind ignores it
    names = [...new Set(all.flatMap(Object.keys))].filter(name => name !== "name" && isShown(name));
  const rows = names.map(name => ({ name, a: written(a[name]), b: written(b[name]) })).filter(row => row.a !== row.b);
  if (!rows.length) return el("p", {}, "The sweep tells no setting in which they differ.");
  const told = isWhole ? "Settings that differ; all others that both read are the same" : "Settings that differ; a blend has none of its own";
  return sortable(
    told,
    [
      { title: "Setting", of: row => row.name, text: true },
      { title: "A", of: row => row.a, text: true },
      { title: "B", of: row => row.b, text: true },
    ],
    rows,
  );
}

/** Its config by dotted key; null of a blend, or where the server cannot read it. */
async function configOf({ sweep, run, isBlend }, signal) {
  if (isBlend) return null;
  const found = await get(`${sweep.url}/runs/${encodeURIComponent(run)}/config.json`, signal).catch(err => {
    if (err.kind === "not-found") return null;
    throw err;
  });
  return found?.config ?? null;
}

/** A value of a config. */
function written(value) {
  if (value === undefined) return "–";
  if (Array.isArray(value)) return value.length ? value.map(written).join(", ") : "none";
  if (value === null) return "none";
  if (typeof value !== "object") return num(value);
  return written(Object.entries(value).map(([name, each]) => `${name}: ${written(each)}`));
}

// -- curves

async function curves(sides, signal, named) {
  const found = await Promise.all(sides.map(side => curveOf(side, signal)));
  const drawn = sides.map((side, k) => ({ ...side, k, ...found[k] })).filter(side => side.rows.length > 1);
  if (!drawn.length) return el("p", { class: "muted" }, `Neither was trained over epochs: they have no curves. ${CHOOSE}`);
  const missing = sides.filter((_, k) => found[k].rows.length < 2).map(({ letter }) => `${letter} was not trained over epochs.`);
  const { about } = drawn[0],
    epochs = drawn.flatMap(({ rows }) => rows.map(row => row.epoch));
  const seriesOf = key =>
    drawn.map(({ letter, rows, k }) => ({
      name: letter,
      key: letter,
      x: rows.map(row => row.epoch),
      y: rows.map(row => row[key] ?? NaN),
      strong: true,
      colour: css(COLOURS[k]),
    }));
  const choose = letter => {
    const { sweep, run } = sides.find(side => side.letter === letter);
    go(href({ page: "sweeps", sweep: sweep.name, run }, ["store"]));
  };
  const from = Math.ceil(EARLY * Math.max(...epochs));
  const title = about.ranked_by === "contest" ? "held-out score" : `held-out ${nameOfScore(about.ranked_by)}`;
  const chart = (key, name, from = 0) => lines({ title: name, from, series: seriesOf(key), choose, leads: "the run", legend: () => named }).root;
  return [
    el("p", { class: "caption" }, ["All folds of each together, A and B in their colours; a click opens the run.", ...missing].join(" ")),
    el(
      "div",
      { class: "pair" },
      chart("loss", "training loss"),
      chart("score", title, about.larger_is_better ? from : 0),
    ),
    drawn.map(({ letter, url }) => twins(url, `Curves of ${letter}`)),
  ].flat();
}

/** Rows of all folds together; none of what was fitted, or is a blend. */
async function curveOf({ sweep, run, isBlend }, signal) {
  const url = `${sweep.url}/runs/${encodeURIComponent(run)}/curves.json`;
  if (isBlend) return { url, rows: [] };
  const found = await table(url, signal).catch(err => {
    if (err.kind === "not-found") return { rows: () => [] };
    throw err;
  });
  return { url, rows: found.rows().filter(row => row.fold === null) };
}

// -- errors

async function errors({ state, signal, store, sweep, a, url, named }) {
  const passed = isFiltered(state),
    { targets: there } = await get(`${url}/errors.json`, signal),
    targets = foremost(
      a.about.targets.filter(target => there.includes(target)),
      a.about.target,
    );
  if (!targets.length) return el("p", {}, NO_TRUTH);
  let target = given(state, "target", targets) ?? targets[0];
  const place = el("div");
  const draw = async () => {
    const drawn = target;
    place.setAttribute("aria-busy", "true");
    const asked = passed ? filtered("", { state: { ...state, target }, sweep }, { store: store.name }) : withQuery("", { target }),
      made = await ofTarget({ signal, store, a, url, asked, target, named });
    if (drawn !== target) return; // another was chosen meanwhile
    place.replaceChildren(...made);
    place.removeAttribute("aria-busy");
  };
  const choose = async name => {
    target = name;
    put({ target }, { replace: true });
    try {
      await draw();
    } catch (err) {
      if (err.name === "AbortError" || target !== name) return;
      place.replaceChildren(problem(err));
      place.removeAttribute("aria-busy");
      if (!err.kind) console.error(err);
    }
  };
  await draw();
  const options = targets.map(name => [name, plain(name)]);
  return [
    el("div", { class: "controls" }, select("Target", options, target, choose)),
    place,
    twins(`${url}/photographs.json`, "Errors of both"),
  ];
}

const POINT = "image_id,true,predicted_a,predicted_b,error_a,error_b", // columns
  WORDS = "true_word,predicted_word_a,predicted_word_b";
const NO_TRUTH = "No photograph that both predicted has a known truth.";
const isNumber = value => typeof value === "number";

/** Chart and photographs of one target. asked: the query that says which photographs; named: which runs A and B are. */
async function ofTarget({ signal, store, a, url, asked, target, named }) {
  const { n, nearer, most: furthest } = await get(`${url}/errors.json${asked}`, signal),
    every = everyOf(n);
  if (!n) return [el("p", {}, "No photograph that both predicted and that passes the filter has a known truth.")];
  const isClass = a.about.classes.includes(target),
    columns = isClass ? `${POINT},${WORDS}` : POINT,
    of = more => withQuery(`${url}/photographs.json${asked}`, { columns, ...more }),
    [points, apart] = await Promise.all([table(of({ every }), signal), get(of({ apart: 1, limit: MOST_LISTED }), signal)]);
  const rows = points.rows().filter(row => [row.predicted_a, row.predicted_b, row.true].every(isNumber)),
    gain = row => (isClass ? row.predicted_b - row.predicted_a : Math.abs(row.error_a) - Math.abs(row.error_b));
  const told = key => row =>
    isClass
      ? `${key.toUpperCase()} ${row[`predicted_word_${key}`]} ${num(row[`predicted_${key}`], 3)}`
      : `${key.toUpperCase()} ${signed(target, row[`error_${key}`])}${unitOf(target)}`;
  const texts = row => [told("a")(row), told("b")(row), isClass ? `true ${row.true_word}` : `true ${num(row.true, 3)}${unitOf(target)}`];
  const x = Float64Array.from(rows, row => (isClass ? row.predicted_a : row.error_a)),
    y = Float64Array.from(rows, row => (isClass ? row.predicted_b : row.error_b));
  const most = Math.max(furthest, 1e-9);
  const colour = scale(isClass ? "B is surer of the truth by" : "B is nearer to the truth by", rows.map(gain), { centred: true, unit: unitOf(target) });
  const what = isClass ? "probability of the true word" : "error";
  const axis = letter => ({ label: `${what} of ${letter}${isClass ? "" : axisOf(target)}`, format: value => num(value, 3) });
  const chart = new Scatter({
    label: `${plain(target)}: ${what} of B against that of A`,
    class: "square-chart",
    axes: { x: axis("A"), y: axis("B") },
    describe: i => [rows[i].image_id, ...texts(rows[i])].join(", "),
    open: i => go(photographHref(rows[i].image_id)),
    card: i => hoverCard(store, rows[i].image_id, texts(rows[i])),
    below: (ctx, toX, toY, ink) => guides(ctx, toX, toY, ink, isClass ? [0, 1] : [-most, most], !isClass),
  });
  chart.extent = isClass ? [0, 1, 0, 1] : [-most, most, -most, most];
  chart.set({ x, y, colours: colour.packed });
  const caption = `${plain(target)}: B is ${isClass ? "surer" : "nearer"} on ${nearer.toLocaleString("en")} of ${count(n, "photograph")}${
    every ? `, of which the chart draws one in ${every}` : ""
  }${isClass ? "" : "; between the diagonals, left and right of the middle"}`;
  const differ = columnar(apart.columns, apart.rows).rows(),
    [listed, all] = [differ.length, apart.total].map(number => number.toLocaleString("en")),
    some = `${listed} of ${all} photographs are listed, from the largest difference on; the CSV has all.`;
  return [
    el("figure", {}, el("figcaption", {}, caption), chart.root, colour.legend, savers(caption, chart, () => [colour.legend, named])),
    subsection(
      "Photographs on which they differ most",
      differ.length < apart.total ? el("p", { class: "caption" }, some) : null,
      gallery(store, differ, texts),
    ),
  ];
}

/** Where both are as far off, and of errors where either is right. */
function guides(ctx, toX, toY, ink, [low, high], isError) {
  const line = (...ends) => {
    ctx.beginPath();
    ends.forEach(([x, y], k) => (k ? ctx.lineTo(toX(x), toY(y)) : ctx.moveTo(toX(x), toY(y))));
    ctx.stroke();
  };
  ctx.strokeStyle = ink.muted;
  line([low, low], [high, high]);
  if (!isError) return;
  line([low, high], [high, low]);
  ctx.setLineDash([3, 3]);
  line([low, 0], [high, 0]);
  line([0, low], [0, high]);
  ctx.setLineDash([]);
}
