// A sweep that is not finished: how far it is, whether it runs, and its scores so far. It tells what is new by itself.

import { forget, here } from "../api.js";
import { el, fixed, num, say } from "../dom.js";
import { ago, bar, watch } from "../live.js";
import { nameOfScore } from "../scores.js";
import { again, href } from "../state.js";
import { sortable } from "../table.js";

const LOST = "The server does not answer. This page goes on by itself once it is back.";

/** Its elements. chosen: the run below; onEpoch(): that run has a new epoch. */
export function progress({ sweep, about, chosen, among, signal, onEpoch }) {
  const url = `${sweep.url}/progress.json`,
    head = el("div", { class: "progress" }),
    place = el("div");
  let epoch = null;
  const tell = (found, now_s) => {
    if (found.finished) {
      forget();
      say("The sweep is finished");
      again();
      return null;
    }
    head.replaceChildren(...headline(found, now_s), passes(found));
    if (!place.contains(document.activeElement)) place.replaceChildren(scores(found, { about, chosen, among }));
    const now = found.runs.find(each => each.name === chosen)?.epoch;
    if (epoch !== null && now !== epoch) onEpoch();
    epoch = now;
    return found.running !== false;
  };
  watch(url, signal, tell, () => head.replaceChildren(el("p", {}, LOST)));
  const json = el("p", { class: "twins" }, "Progress: ", el("a", { href: here(url) }, "JSON"));
  return [head, place, json];
}

function headline({ running, epoch, epochs, last_epoch_at: last, passes }, now_s) {
  const several = passes.length > 1 ? ` in ${passes.length} passes` : "",
    done = epochs ? `Epoch ${num(epoch)} of ${num(epochs)}${several}` : `${num(epoch)} epochs`,
    since = last === null ? "no epoch has ended yet" : `last epoch ${ago(Math.max(0, now_s - last))}`;
  const state = { true: "running", false: epoch ? "stopped" : "not begun", null: "trained elsewhere, or stopped" }[running];
  return [
    el("p", { class: "told" }, el("strong", {}, done), ` · ${state}, ${since}`),
    epochs ? bar(epoch, epochs, "Epochs") : null,
    running === false ? el("p", { class: "muted" }, "biomass train --resume, with the sweep's folder, goes on with it.") : null,
  ].filter(Boolean);
}

function passes({ passes: all }) {
  if (all.length < 2) return "";
  const state = ({ running, epoch, epochs }) => {
    if (epochs && epoch >= epochs) return "trained";
    return { true: epoch ? "running" : "waits or begins", false: epoch ? "stopped" : "not begun", null: "not known" }[running];
  };
  return sortable(
    "Passes: heads that are trained together",
    [
      { title: "Pass", of: row => row.pass, text: true },
      { title: "Heads' points", of: row => row.n_runs },
      { title: "Epoch", of: row => row.epoch, show: row => `${row.epoch} of ${row.epochs}` },
      { title: "State", of: state, text: true },
    ],
    all,
  );
}

/** What ranks them so far, by the last epoch of each. */
function scores({ runs, passes: all }, { about, chosen, among }) {
  const score = nameOfScore(about.ranked_by),
    begun = new Set(about.runs.map(each => each.name)),
    of = Math.max(0, ...all.map(each => each.epochs));
  const link = name =>
    el("a", { class: "run", href: href({ run: name, fold: null }), "aria-current": name === chosen ? "true" : null }, name);
  return sortable(
    `${among ? `Runs of ${among}: s` : "S"}cores so far, of each run's last epoch on what its heads hold out, by one view; the leaderboard follows once the sweep is finished`,
    [
      { title: "Run", of: row => row.name, text: true, show: row => (begun.has(row.name) ? link(row.name) : row.name) },
      { title: score[0].toUpperCase() + score.slice(1), key: "score", of: row => row.score, show: row => (row.epoch ? fixed(row.score, 4) : "–") },
      { title: "Epoch", of: row => row.epoch, show: row => (row.epoch ? `${row.epoch}${of ? ` of ${of}` : ""}` : "–") },
      { title: "Loss", of: row => row.loss, show: row => (row.epoch ? num(row.loss, 3) : "–") },
    ],
    runs,
    { name: "progress", sort: "score", descending: about.larger_is_better, mark: row => (row.name === chosen ? "chosen" : null) },
  );
}
