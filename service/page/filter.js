// Which photographs are meant: one filter for all pages, kept in the address.

import { get, withQuery } from "./api.js";
import { el, plain, problem, say, select, unitOf } from "./dom.js";
import { details } from "./kept.js";
import { go, href, read } from "./state.js";

const NARROWS = ["fold", "site", "from", "to", "sign", "off", "lasso"];
const SIGNS = { high: "too high", low: "too low" };
const groupsOf = state => Object.keys(state).filter(key => key.startsWith("in."));

/** Whether some photographs are left out. */
export const isFiltered = state => NARROWS.some(key => state[key]) || groupsOf(state).length > 0;

/** The address of the photographs that pass, as `rest` of `photographs` or of a photograph knows them. */
export function filtered(url, { state, sweep }, more = {}) {
  const names = ["target", ...NARROWS, "run", ...groupsOf(state)].filter(name => sweep || name !== "run"),
    chosen = Object.fromEntries(names.map(name => [name, state[name]]));
  return withQuery(url, { sweep: sweep?.name, ...chosen, ...more });
}

/** Ids of the photographs that pass; null where all do. */
export async function passing({ state, store, sweep, signal }) {
  if (!isFiltered(state)) return null;
  const ids = new Set();
  let next = filtered(`${store.url}/photographs.json`, { state, sweep }, { columns: "image_id", limit: 100_000 });
  while (next) {
    const part = await get(next, signal);
    part.rows.forEach(([id]) => ids.add(id));
    next = part.next;
  }
  return ids;
}

/** The filter in words; empty where all photographs pass. */
export function inWords(state) {
  const off = state.off ? `off by ${state.off}${unitOf(state.target ?? "")} or more` : "",
    sign = SIGNS[state.sign] ?? "";
  return [
    ...groupsOf(state).map(key => `${plain(key.slice(3))} ${state[key]}`),
    state.site && `site ${state.site}`,
    state.from && `from ${state.from}`,
    state.to && `to ${state.to}`,
    state.fold && `fold ${state.fold}`,
    [sign, off].filter(Boolean).join(", "),
    state.lasso && "within a lasso",
  ]
    .filter(Boolean)
    .join(" · ");
}

/** A bar above all pages that tells the filter and changes it. It stays, so that the focus does. */
export class FilterBar {
  constructor() {
    this.words = el("span", { class: "words" });
    this.clear = el("button", { type: "button", class: "link", onclick: () => this.#clear() }, "Clear the filter");
    this.fields = el("div", { class: "controls" });
    this.details = details("filter", el("span", {}, "Filter: ", this.words), this.fields);
    this.root = el("search", { class: "filter", "aria-label": "Which photographs" }, this.details, this.clear);
    this.details.addEventListener("toggle", () => this.details.open && this.#offer());
    addEventListener("noted", () => this.show(this));
  }

  /** Tell the filter of the present address. */
  show({ store, sweep, signal }) {
    Object.assign(this, { store, sweep, signal });
    const state = read(),
      words = inWords(state);
    this.root.hidden = !store;
    this.words.textContent = words || "all photographs";
    this.clear.hidden = !words;
    this.details.open = (state.open ?? "").split(",").includes("filter");
    if (this.details.open) this.#offer();
  }

  #clear() {
    const state = read(),
      none = Object.fromEntries([...NARROWS, ...groupsOf(state)].map(key => [key, null]));
    go(href({ ...none, at: null }), { stay: true });
    this.details.querySelector("summary").focus();
    say("All photographs are shown");
  }

  /** Fields for what the store and the sweep let one choose. */
  async #offer() {
    if (!this.store) return;
    const { sweep, store, signal } = this,
      state = read(),
      url = withQuery(`${store.url}/filters.json`, { sweep: sweep?.name, run: sweep && state.run, target: state.target });
    try {
      const choices = await get(url, signal),
        focused = document.activeElement?.closest("[data-name]")?.dataset.name;
      this.fields.replaceChildren(...fieldsOf(choices, read()));
      if (focused) this.fields.querySelector(`[data-name="${CSS.escape(focused)}"] :is(select, input)`)?.focus();
    } catch (err) {
      if (err.name !== "AbortError") this.fields.replaceChildren(problem(err));
    }
  }
}

/** One change of the filter; what depends on it goes back to all. */
const change = changes => go(href({ ...changes, at: null }), { stay: true });

function fieldsOf(choices, state) {
  const { groups, sites, dates, runs, folds, targets, classes } = choices,
    any = [["", "any"]];
  const field = (name, label, options, value) =>
    named(
      name,
      select(label, options, value, chosen => change({ [name]: chosen || null })),
    );
  const day = (name, label) => {
    const input = { type: "date", min: dates[0], max: dates[1], value: state[name] ?? "" };
    return named(name, labelled(label, { ...input, onchange: event => change({ [name]: event.target.value || null }) }));
  };
  const target = state.target ?? choices.target,
    isClass = classes.includes(target);
  const columns = Object.entries(groups).map(([column, counts]) => {
    const options = Object.entries(counts).map(([value, n]) => [value, `${value} (${n})`]);
    return field(`in.${column}`, plain(column), [...any, ...options], state[`in.${column}`] ?? "");
  });
  const pairs = names => names.map(name => [name, name]);
  return [
    ...columns,
    sites.length > 1 && field("site", "Site", [...any, ...pairs(sites)], state.site ?? ""),
    dates.length > 0 && day("from", "From"),
    dates.length > 0 && day("to", "To"),
    targets.length > 1 && field("target", "Target", targets.map(name => [name, plain(name)]), target),
    runs.length > 0 && field("run", "Run", pairs(runs), state.run ?? choices.run),
    folds.length > 1 && field("fold", "Fold", [...any, ...pairs(folds)], state.fold ?? ""),
    runs.length > 0 && !isClass && field("sign", "Predicted", [...any, ...Object.entries(SIGNS)], state.sign ?? ""),
    runs.length > 0 && offBy(target, isClass, state),
  ].filter(Boolean);
}

/** Of a class the error is what the probability of the true word lacks to 1. */
function offBy(target, isClass, state) {
  const unit = unitOf(target ?? ""),
    label = isClass ? "1 − probability of the true word, at least" : `Off by at least${unit && `,${unit}`}`,
    set = event => change({ off: event.target.value >= 0 ? event.target.value || null : null }),
    input = { type: "number", min: 0, step: "any", value: state.off ?? "", onchange: set };
  return named("off", labelled(label, input));
}

const labelled = (label, input) => el("label", { class: "field" }, el("span", {}, label), el("input", input));

function named(name, field) {
  field.dataset.name = name;
  return field;
}
