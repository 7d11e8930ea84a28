// What a sweep found: the leaderboard, and of one run its curves and its errors, the worst photographs first.

import { early, forget, get, served, table } from "../api.js";
import { span, track } from "../bars.js";
import { el, facts, fixed, num, pending, plain, problem, section, select, twins } from "../dom.js";
import { nameOfScore } from "../scores.js";
import { comparable } from "../sides.js";
import { given, go, href, read } from "../state.js";
import { sortable } from "../table.js";
import { progress } from "./progress.js";
import { askOfRun, run } from "./run.js";

const BASELINES = ["mean", "ridge", "logistic"];
const OF_TARGET = /^(r2|accuracy|f1)_(.*)$/; // of the leaderboard's columns
const ALL = "Out of fold"; // the group of what ranks
const PARTS = /^(r2|accuracy|f1|score)_.|^(r2|rmse|mae|log_loss|accuracy)$/; // by target, by State, other scores

const leaderboardOf = sweep => `${sweep.url}/leaderboard.json`;

export async function show({ state, signal, store, sweep, sweeps }) {
  if (!sweep)
    return { title: "Sweeps", content: [el("p", {}, "No sweep is served. Start the service with --sweep DIR to see one here.")] };
  const first = state.run ?? sweep.best; // asked for before one knows more
  if (sweep.finished) early(table(leaderboardOf(sweep), signal));
  if (first) askOfRun(sweep, first, signal, sweep.finished);
  const about = await get(sweep.url, signal),
    names = [...about.runs, ...about.blends].map(each => each.name);
  const chosen = given(state, "run", names) ?? [about.best, names[0]].find(name => names.includes(name)),
    among = sweeps.length > 1 ? sweep.name : null;
  const place = el("section", {}, chosen ? run({ state, signal, store, sweep, about, name: chosen, among }) : null);
  const renew = async () => {
    if (place.contains(document.activeElement) || place.matches(":hover")) return; // somebody reads a curve there
    forget();
    await served(signal); // the browser keeps what is of the state before
    await askOfRun(sweep, chosen, signal);
    place.replaceChildren(...run({ state: read(), signal, store, sweep, about, name: chosen, among }).filter(Boolean));
  };
  return {
    title: sweep.name,
    content: [
      sweeps.length > 1
        ? select(
            "Sweep",
            sweeps.map(each => [each.name, each.name]),
            sweep.name,
            name => go(href({ sweep: name }, ["page", "store"])),
          )
        : null,
      settings(about),
      about.finished
        ? section(
            "Leaderboard",
            pending(() => board(sweep, about, chosen, among, signal)),
          )
        : section("Training", progress({ sweep, about, chosen, among, signal, onEpoch: renew })),
      place,
    ],
  };
}

/** among: name of the sweep where there are others. */
async function board(sweep, about, chosen, among, signal) {
  const url = leaderboardOf(sweep);
  try {
    const found = await table(url, signal);
    return [
      leaderboard(found.rows(), found.names, chosen, about, among),
      twins(url, "Leaderboard"),
    ];
  } catch (err) {
    if (!err.kind) throw err;
    return [
      problem(err),
      el(
        "ul",
        {},
        about.runs.map(({ name }) =>
          el("li", {}, el("a", { href: href({ run: name, fold: null }), "aria-current": name === chosen ? "true" : null }, name)),
        ),
      ),
    ];
  }
}

function settings(about) {
  const { notes } = about;
  return el(
    "div",
    { class: "settings" },
    facts(Object.entries(about.settings).filter(([name]) => name !== "name")),
    notes.length
      ? el(
          "ul",
          {},
          notes.map(note => el("li", {}, note)),
        )
      : null,
  );
}

/** The points' range; a baseline that is far worse would press them together, and is left out. */
function scoreRange(points, beside, larger_is_better) {
  const [low, high] = span(points),
    far = 2 * (high - low),
    near = beside.filter(value => (larger_is_better ? value > low - far : value < high + far));
  return span([...points, ...near]);
}

/** { group, title } of a column with a score: of one target, of one State, or of all. */
function partOf(name) {
  const [, score, target] = name.match(OF_TARGET) ?? [];
  if (target) return { group: `${nameOfScore(score)} by target`, title: plain(target), score: nameOfScore(score) };
  if (name.startsWith("score_")) return { group: "Score by part", title: name.replace(/^score_/, "") };
  return { group: "Other scores", title: nameOfScore(name) };
}

const title = text => text[0].toUpperCase() + text.slice(1);

function vsBest({ vs_best: difference, low, high }) {
  const interval = [low, high].every(Number.isFinite) ? ` [${fixed(low, 3)}, ${fixed(high, 3)}]` : ", interval not known";
  return Number.isFinite(difference) ? `${fixed(difference, 4)}${interval}` : "not known";
}

function runCell({ name }, isBlend, runs, chosen) {
  const kind = BASELINES.includes(name) ? " (baseline)" : isBlend ? " (blend)" : "";
  if (!runs.has(name)) return el("span", { class: "run" }, `${name}${kind}`);
  const current = name === chosen ? "true" : null,
    link = el("a", { class: "run", href: href({ run: name, fold: null }), "aria-current": current }, name);
  return kind ? el("span", {}, link, kind) : link;
}

/** Columns of a group beside each other. */
function inGroups(columns) {
  const groups = [...new Set(columns.map(column => column.group))];
  return groups.flatMap(group => columns.filter(column => column.group === group));
}

const toCompare = ({ name }, first, row) =>
  el("a", { href: href({ page: "compare", a: `${name}/${first}`, b: `${name}/${row.name}` }, ["store"]) }, vsBest(row));

function leaderboard(rows, names, chosen, about, among) {
  const runs = new Set([...about.runs, ...about.blends].map(({ name }) => name)),
    blends = new Set(about.blends.map(({ name }) => name)),
    points = new Set(about.runs.filter(run => !run.baseline).map(({ name }) => name));
  const first = about.chosen ?? about.best; // what the others are compared with
  const compared = new Set(comparable(about));
  const whisker = row => [row.score_last - (row.sd_last ?? 0), row.score_last + (row.sd_last ?? 0)];
  const ranked = rows.filter(row => !BASELINES.includes(row.name)),
    beside = rows.filter(row => BASELINES.includes(row.name));
  const range = scoreRange(
    ranked.flatMap(whisker).filter(Number.isFinite),
    beside.map(row => row.score_last).filter(Number.isFinite), // one may tell nothing of what ranks
    about.larger_is_better,
  );
  const inRange = value => Number.isFinite(value) && value >= range[0] && value <= range[1];
  const drawn = beside.filter(row => inRange(row.score_last)),
    marks = drawn.map(row => ({ value: row.score_last, kind: row.name }));
  const spread = rows.some(row => Number.isFinite(row.sd_last));
  const settingNames = names.filter(name => name.includes("."));
  const score = nameOfScore(about.ranked_by);
  const parts = names
      .filter(name => PARTS.test(name) && name !== "score_last" && name !== "score_best")
      .map(name => ({ key: name, ...partOf(name), of: row => row[name], show: row => fixed(row[name], 3) })),
    isFirst = part => part.key.replace(OF_TARGET, "$2") === about.target;
  const columns = [
    { key: "name", title: "Run", of: row => row.name, text: true, show: row => runCell(row, blends.has(row.name), runs, chosen) },
    {
      key: "score_last",
      group: ALL,
      title: title(score),
      of: row => row.score_last,
      show: row => (row.failed ? "failed" : fixed(row.score_last, 4)),
    },
    ...parts.filter(isFirst).map(part => ({ ...part, group: ALL, title: `${part.score} ${part.title}` })),
    ...(spread
      ? [{ key: "sd_last", group: ALL, title: "± sd", of: row => row.sd_last, show: row => fixed(row.sd_last, 4) }]
      : []),
    {
      key: "chart",
      group: ALL,
      title: "Chart",
      plain: true,
      show: row =>
        track(range, {
          value: row.score_last,
          low: whisker(row)[0],
          high: whisker(row)[1],
          marks,
          kind: row.apart ? "pale" : "",
        }),
    },
    {
      key: "vs_best",
      group: ALL,
      title: "vs best [95 %]",
      of: row => row.vs_best,
      show: row => {
        if (row.name === first) return "best";
        if (compared.has(row.name)) return toCompare(about, first, row);
        return Number.isFinite(row.vs_best) ? vsBest(row) : "–"; // the mean is compared with nothing
      },
    },
    ...settingNames.map(name => ({
      key: name,
      group: "Settings",
      title: name.replace(/^.*\./, ""),
      of: row => row[name],
      text: rows.some(row => typeof row[name] === "string"),
      show: row => (row[name] === null || !points.has(row.name) ? "–" : num(row[name])), // no point, or its kind ignores it
    })),
    ...inGroups(parts.filter(part => !isFirst(part))),
  ];
  const what = spread ? "mean ± sd over repeats" : "of one repeat, so without ± sd";
  const direction = about.larger_is_better ? "" : ", smaller is better";
  const told = `${among ? `Runs of ${among}: out` : "Out"}-of-fold ${score}${direction}, ${what}; pale: told apart from the best${marks.length ? `; upright lines: ${drawn.map(row => `${row.name} ${num(row.score_last, 3)}`).join(", ")}` : ""}`;
  const mark = row => (row.name === chosen ? "chosen" : null);
  return sortable(told, columns, rows, { name: "board", mark, choice: true });
}
