// Every photograph as a point, alike ones close together.

import { early, get, table, withQuery } from "../api.js";
import { hoverCard } from "../cards.js";
import { dark, scale } from "../colours.js";
import { count, el, plain, problem, say, select, signed, twins, unitOf } from "../dom.js";
import { passing } from "../filter.js";
import { RunColours, targetOf } from "../run_colours.js";
import { savers } from "../save.js";
import { everyOf, Scatter } from "../scatter.js";
import { AROUND, given, go, href, photographHref, put, read } from "../state.js";

const METHODS = { pca: "PCA", umap: "UMAP", tsne: "t-SNE" };
const NEVER = new Set(["image_id", "path", "sha256", "status"]); // columns that tell nothing as a colour
const MOST_CORNERS = 60; // of a lasso: it stands in the address
const HINT = "drag to move, wheel, fingers or + and − to zoom; a click opens a photograph";

export async function show({ state, signal, store, sweep, sweeps }) {
  const names = store.columns,
    colour = state.colour ?? (await firstColour(store, names, signal)),
    method = given(state, "method", Object.keys(METHODS)) ?? "pca",
    view = given(state, "view", store.views) ?? store.views[0];
  if (!targetOf(colour)) given({ colour }, "colour", names);
  const chosen = { method, view, colour, run: state.run, b: state.b };
  const every = everyOf(store.n_sealed);
  const ids = early(passing({ state, signal, store, sweep }));
  const map = new PhotographMap({ state, ids, signal, store, sweep, sweeps, chosen, names, every });
  map.draw(parsed(state.box));
  return { title: "Map", content: map.content };
}

async function firstColour(store, names, signal) {
  if (names.includes("State")) return "State";
  return (await get(`${store.url}/overview.json`, signal)).target ?? "position";
}

/** The methods whose packages the server has; one that an address names stands too, and the server says what is missing. */
const methodsOf = (store, chosen) =>
  Object.entries(METHODS).filter(([method]) => store.map_methods.includes(method) || method === chosen);

/** "x0,x1,y0,y1" as numbers, or null. */
function parsed(text) {
  const box = text?.split(",").map(Number) ?? [];
  return box.length === 4 && box.every(Number.isFinite) && box[0] < box[1] && box[2] < box[3] ? box : null;
}

class PhotographMap {
  constructor({ state, ids, signal, store, sweep, sweeps, chosen, names, every }) {
    Object.assign(this, { state, passing: ids, signal, store, sweep, sweeps, chosen, names, every, turn: 0, ids: [], texts: () => [] });
    this.note = el("div", { class: "map-note" });
    this.links = el("div");
    this.chart = new Scatter({
      label: "Map of photographs by class token",
      class: "map-chart",
      zoom: true,
      equal: true,
      open: i => go(photographHref(this.ids[i], this.#walk())),
      onbox: box => put({ box: box?.map(value => Number(value.toPrecision(5))).join(",") ?? null }, { replace: true }),
      describe: i => [this.ids[i], ...this.texts(i)].join(", "),
      card: i => hoverCard(store, this.ids[i], this.texts(i)),
      onlasso: corners => this.#gather(corners),
    });
    this.chart.lasso = this.#lasso();
    dark.addEventListener("change", () => this.draw(this.chart.box), { signal });
    const titled = () => `Map of photographs by class token${this.runsTold ? ` · ${this.runsTold}` : ""}`,
      saved = savers(titled, this.chart, () => this.note.querySelector(".legend"));
    this.content = [this.#controls(), this.chart.root, this.note, saved, this.links];
  }

  #controls() {
    const { chosen, store, names } = this,
      columns = names.filter(name => !NEVER.has(name)).map(name => [name, plain(name)]);
    this.colourField = select("Colour", [["Catalog", columns]], chosen.colour, colour => this.#choose({ colour }));
    const { signal, sweep, sweeps, every } = this,
      choose = changes => this.#choose(changes);
    this.runs = new RunColours({ chosen, signal, store, every, sweep, sweeps, names, colourField: this.colourField, choose });
    return el(
      "div",
      { class: "controls" },
      select("Method", methodsOf(store, chosen.method), chosen.method, method => this.#choose({ method, box: null })),
      select(
        "View",
        store.views.map(name => [name, name]),
        chosen.view,
        view => this.#choose({ view, box: null }),
      ),
      this.colourField,
      this.runs.root,
      el("button", { type: "button", onclick: () => this.chart.reset() }, "Show all"),
      el("button", { type: "button", "aria-pressed": "false", onclick: event => this.#rope(event.target) }, "Lasso"),
      el("button", { type: "button", onclick: () => this.#gather(this.#inSight()) }, "Photographs in sight"),
    );
  }

  /** A drag draws a line around points, or moves the map. */
  #rope(button) {
    this.chart.lassoing = !this.chart.lassoing;
    button.setAttribute("aria-pressed", String(this.chart.lassoing));
    this.chart.root.classList.toggle("lassoing", this.chart.lassoing);
    say(this.chart.lassoing ? "Draw a line around points; their photographs are shown then" : "A drag moves the map");
  }

  /** Corners of what the chart shows. */
  #inSight() {
    if (!this.chart.scales) return [];
    const { fromX, fromY } = this.chart.scales,
      { width, height } = this.chart;
    return [
      [0, 0],
      [width, 0],
      [width, height],
      [0, height],
    ].map(([x, y]) => [fromX(x), fromY(y)]);
  }

  /** Where the colour is a run's error, the next photograph is the next worst. */
  #walk() {
    const target = this.#target;
    return target && this.chosen.run ? { target, run: this.chosen.run, order: "-off" } : {};
  }

  /** Go to the photographs within a polygon. */
  #gather(corners) {
    if (corners.length < 3) return;
    const every = Math.ceil(corners.length / MOST_CORNERS),
      numbers = corners.filter((_, k) => k % every === 0).flat(),
      { method, view } = this.chosen;
    const lasso = [method, view, ...numbers.map(value => Number(value.toPrecision(4)))].join(",");
    go(href({ page: "photographs", lasso }, AROUND));
  }

  /** The lasso of the filter, if it lies on this map. */
  #lasso() {
    const [method, view, ...numbers] = (this.state.lasso ?? "").split(",");
    if (method !== this.chosen.method || view !== this.chosen.view) return [];
    return Array.from({ length: numbers.length / 2 }, (_, k) => [Number(numbers[2 * k]), Number(numbers[2 * k + 1])]);
  }

  #choose(changes) {
    Object.assign(this.chosen, changes);
    put(changes);
    early(this.runs.show()); // what fails there fails in the drawing too
    this.draw("box" in changes ? null : this.chart.box);
  }

  /** The target whose error is the colour, if one's is. */
  get #target() {
    return targetOf(this.chosen.colour) ?? null;
  }

  /** Ask for what is chosen and draw it; an answer that another choice overtook is dropped. */
  async draw(box = null) {
    const turn = ++this.turn,
      { method, view } = this.chosen,
      url = withQuery(`${this.store.url}/map.json`, { method, view, every: this.every });
    this.note.replaceChildren(el("p", { class: "loading" }, "Placing photographs …"));
    try {
      const points = early(table(url, this.signal)),
        colour = await this.#colour(points);
      if (turn === this.turn) this.#show(await points, colour, box, url, await this.passing);
    } catch (err) {
      if (err.name === "AbortError" || turn !== this.turn) return;
      this.chart.clear(); // points of another choice
      this.links.replaceChildren();
      this.note.replaceChildren(problem(err));
      if (!err.kind) console.error(err);
    }
  }

  #show(points, { name, values, none = `The catalog tells no ${name}.`, from = [`${this.store.url}/catalog.json`, "Catalog"], runs = null, ...how }, box, url, passing) {
    const colour = scale(name, values, how),
      there = value => value ?? NaN;
    this.ids = points.column("image_id");
    this.runsTold = runs;
    const target = this.#target,
      error = i => `${signed(target, values[i])}${unitOf(target)}`;
    this.texts = i => [`${name}: ${how.centred && values[i] !== null ? error(i) : colour.text(i)}`];
    const [x, y] = ["x", "y"].map(axis => Float32Array.from(points.column(axis), there));
    const shown = passing && Uint8Array.from(this.ids, id => Number(passing.has(id)));
    this.chart.lasso = this.#lasso();
    this.chart.set({ x, y, colours: colour.packed, box, shown });
    this.chart.mark(this.ids.indexOf(read().at));
    const all = this.every ? this.store.n_sealed : points.n,
      n = passing ? `${count(passing.size, "photograph")} of ${all.toLocaleString("en")}` : count(points.n, "photograph"),
      some = this.every ? `${points.n.toLocaleString("en")} of ${count(all, "photograph")} shown, one in ${this.every}` : null,
      told = points.n ? [some, some && !passing ? null : n, HINT].filter(Boolean).join("; ") : "No photograph is sealed yet.";
    const isTold = !points.n || values.some(value => value !== null && value !== "");
    this.note.replaceChildren(isTold ? colour.legend : el("p", {}, none), el("p", { class: "muted" }, told));
    this.links.replaceChildren(twins(url, "Map"), twins(...from));
  }

  /** { name, values, ... } for a scale, a value a point of those that are under way. */
  #colour(points) {
    return this.#target ? this.runs.values(points) : this.#column(points, this.chosen.colour);
  }

  async #column(points, name) {
    const columns = `position,${name}`,
      catalog = await table(withQuery(`${this.store.url}/catalog.json`, { columns, every: this.every }), this.signal);
    const [at, values] = ["position", name].map(each => catalog.column(each)),
      byPosition = new Map();
    for (let i = 0; i < catalog.n; i++) byPosition.set(at[i], values[i]);
    const positions = (await points).column("position");
    return {
      name: plain(name),
      values: positions.map(position => byPosition.get(position) ?? null),
      unit: unitOf(name),
    };
  }
}
