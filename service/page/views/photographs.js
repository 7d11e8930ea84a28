// All photographs as pictures, in an order: those that pass the filter.

import { get, withQuery } from "../api.js";
import { count, el, plain, select, twins } from "../dom.js";
import { inWords, isFiltered } from "../filter.js";
import { photographList } from "../list.js";
import { given, go, href } from "../state.js";

const FIRST = 48;
const OF_ERRORS = { "-off": "worst first", error: "most too low first", "-error": "most too high first" };
const OF_STORE = { position: "as in the store", image_id: "by name", date: "oldest first", "-date": "newest first", site: "by site" };

export async function show({ state, signal, store, sweep }) {
  const url = withQuery(`${store.url}/filters.json`, { sweep: sweep?.name, run: sweep && state.run, target: state.target }),
    { run, target, dates, sites } = await get(url, signal);
  const orders = ordersOf({ run, target, dates, sites }),
    order = given(state, "order", Object.keys(orders)) ?? "position";
  const list = await photographList({ store, sweep, state, signal }, { order, target, run, first: FIRST });
  const whole = isFiltered(state) ? ` of ${store.n_sealed.toLocaleString("en")}: ${inWords(state)}` : "",
    errors = run ? `; errors of ${plain(target)} are those of ${run}, out of fold` : "";
  return {
    title: "Photographs",
    content: [
      el(
        "div",
        { class: "controls" },
        select("Order", Object.entries(orders), order, reorder, "order"),
      ),
      el("p", { class: "caption" }, `${count(list.total, "photograph")}${whole}${errors}`),
      list.total ? list.root : el("p", {}, none(order, run, target)),
      twins(list.url, "These photographs"),
    ],
  };
}

/** Why the list is empty: an order by errors leaves out what has none. */
function none(order, run, target) {
  if (!(order in OF_ERRORS)) return "No photograph passes the filter.";
  return `${run} predicts ${plain(target)} of no photograph that passes the filter. Choose another run, target or order.`;
}

const reorder = order => go(href({ order, n: null, at: null }), { stay: "order" });

/** The orders that there are columns for. */
function ordersOf({ run, target, dates, sites }) {
  const ofTarget = target ? { "-true": `most ${plain(target)} first`, true: `least ${plain(target)} first` } : {},
    all = { ...OF_STORE, ...ofTarget, ...(run ? OF_ERRORS : {}) };
  if (!dates.length) ["date", "-date"].forEach(name => delete all[name]);
  if (sites.length < 2) delete all.site;
  return all;
}
