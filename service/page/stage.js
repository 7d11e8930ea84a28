// The photograph with a layer over it that fades: principal components, norms, or likeness to the patch that was clicked.

import { get, imageUrl, ofState } from "./api.js";
import { photographLink } from "./cards.js";
import { gradient, viridis } from "./colours.js";
import { count, el, fixed, num, problem, say, section, select } from "./dom.js";
import { drawHeat, ends, patchOf, placeCell } from "./heatmap.js";
import { given, put, refused } from "./state.js";

const LAYERS = {
  pca: "principal components",
  norms: "norm of each patch",
  similar: "likeness to a patch",
  none: "photograph alone",
};
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const N_OTHERS = 8,
  FADE = 0.6,
  FADE_OF_OTHERS = 0.75;

export class Stage {
  /** about: what the server says of the photograph; view: a view's name; others: an element for what resembles the patch elsewhere. */
  constructor({ store, about, state, signal, view, others }) {
    [this.rows, this.columns] = about.grid;
    Object.assign(this, { store, about, signal, view, others, turn: 0, values: null });
    this.patch = this.cursor = patchOf(state.patch, this.rows, this.columns);
    if (state.patch && !this.patch)
      throw refused(`there is no patch ${state.patch} here`, `There are ${this.rows} rows and ${this.columns} columns.`, "patch");
    this.layer = given(state, "layer", Object.keys(LAYERS)) ?? (this.patch ? "similar" : "pca");
    this.fade = state.fade >= 0 && state.fade <= 1 ? Number(state.fade) : FADE;
    this.canvas = el("canvas", { class: "layer", "aria-hidden": "true" });
    this.cell = el("i", { class: "cell" });
    this.legend = el("div", { class: "legend-place" });
    this.root = el("div", {}, this.#controls(), this.#photograph(), this.legend);
    this.#point(this.patch);
    this.draw();
  }

  setView(view) {
    this.view = view;
    this.draw();
  }

  #controls() {
    const setLayer = layer => {
      this.layer = layer;
      put({ layer });
      this.slider.disabled = layer === "none";
      this.draw();
    };
    const setFade = event => {
      this.fade = Number(event.target.value);
      this.canvas.style.opacity = String(this.fade);
      tell();
    };
    this.field = select("Layer", Object.entries(LAYERS), this.layer, setLayer);
    const keep = () => put({ fade: this.fade }, { replace: true });
    const range = { type: "range", min: 0, max: 1, step: 0.01, value: this.fade, disabled: this.layer === "none" };
    this.slider = el("input", { ...range, oninput: setFade, onchange: keep });
    const tell = () => this.slider.setAttribute("aria-valuetext", `${Math.round(100 * this.fade)} % layer`);
    tell();
    return el(
      "div",
      { class: "controls" },
      this.field,
      el("label", { class: "field" }, el("span", {}, "Fade: photograph to layer"), this.slider),
    );
  }

  #photograph() {
    const { image_id: id, aspect } = this.about,
      keys = "arrow keys move, Enter compares a patch with all others";
    const image = el("img", {
      src: imageUrl(this.store, id, "/photograph.jpg"),
      alt: `Photograph ${id}`,
      onerror: event => event.target.classList.add("absent"),
    });
    const role = { role: "application", "aria-roledescription": "patches of a photograph" };
    const label = `Patches of ${id}, ${this.rows} rows by ${this.columns} columns; ${keys}`;
    const place = el("div", { class: "stage", tabindex: 0, ...role, "aria-label": label }, image, this.canvas, this.cell);
    place.style.aspectRatio = String(aspect);
    place.style.maxWidth = `${80 * aspect}vh`;
    place.addEventListener("click", event => this.#choose(this.#under(event)));
    place.addEventListener("pointermove", event => event.pointerType !== "touch" && this.#point(this.#under(event)));
    place.addEventListener("pointerleave", () => this.#point(this.patch));
    place.addEventListener("keydown", event => this.#key(event));
    return (this.place = place);
  }

  /** The patch under the mouse. */
  #under(event) {
    const box = this.place.getBoundingClientRect(),
      inside = (share, n) => Math.min(n - 1, Math.max(0, Math.floor(share * n)));
    const down = (event.clientY - box.top) / box.height,
      right = (event.clientX - box.left) / box.width;
    return [inside(down, this.rows), inside(right, this.columns)];
  }

  #point(patch) {
    this.cursor = patch;
    this.cell.hidden = !patch;
    if (patch) placeCell(this.cell, patch, this.rows, this.columns);
  }

  #choose(patch) {
    this.patch = patch;
    this.#point(patch);
    this.layer = this.field.querySelector("select").value = "similar";
    this.slider.disabled = false;
    put({ patch: patch.join(","), layer: "similar" });
    this.draw();
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" && this.cursor) this.#choose(this.cursor);
    else if (event.key in ARROWS) this.#step(...ARROWS[event.key]);
    else return;
    event.preventDefault();
  }

  #step(down, right) {
    const within = (at, n) => Math.min(n - 1, Math.max(0, at)),
      [row, column] = this.cursor ?? [];
    const middle = [this.rows >> 1, this.columns >> 1];
    this.#point(this.cursor ? [within(row + down, this.rows), within(column + right, this.columns)] : middle);
    const value = this.values?.[this.cursor[0] * this.columns + this.cursor[1]];
    say(`row ${this.cursor[0] + 1}, column ${this.cursor[1] + 1}${value === undefined ? "" : `, ${num(value, 3)}`}`);
  }

  /** Draw the layer of the present view; an answer that another question overtook is dropped. */
  async draw() {
    const turn = ++this.turn;
    this.canvas.style.opacity = String(this.fade);
    try {
      const drawn = await this[`_${this.layer}`]();
      if (turn === this.turn) this.#show(drawn);
    } catch (err) {
      if (err.name === "AbortError" || turn !== this.turn) return;
      this.#show({ legend: problem(err) });
      if (!err.kind) console.error(err);
    }
  }

  #show({ paint, values = null, legend = "", others = "" }) {
    this.canvas.width = this.canvas.height = 1;
    paint?.();
    this.values = values;
    this.legend.replaceChildren(legend);
    this.others.replaceChildren(others);
  }

  #url(rest, query = "") {
    return `${imageUrl(this.store, this.about.image_id, rest)}?view=${encodeURIComponent(this.view)}${query}`;
  }

  // What a layer shows: paint(), its values, its legend, what stands below.

  async _none() {
    return {};
  }

  async _pca() {
    const image = new Image();
    image.src = ofState(this.#url("/pca.png"));
    await image
      .decode()
      .catch(() => Promise.reject(Object.assign(new Error("no picture of the principal components came"), { kind: "image" })));
    const paint = () => {
      [this.canvas.width, this.canvas.height] = [image.naturalWidth, image.naturalHeight];
      this.canvas.getContext("2d").drawImage(image, 0, 0);
    };
    const told = "Red, green and blue are the first three principal components of this view's patch tokens.";
    return { paint, legend: el("p", { class: "muted" }, told) };
  }

  async _norms() {
    const found = await get(this.#url("/norms.json"), this.signal),
      range = ends(found.values);
    const legend = gradient("norm", viridis(true), [num(range[0], 3), num(range[1], 3)]);
    return { paint: () => drawHeat(this.canvas, found, range), values: found.values, legend };
  }

  async _similar() {
    if (!this.patch) return { legend: el("p", {}, "Click a patch: which patches of this and of other photographs resemble it?") };
    const found = await get(this.#url("/similar.json", `&patch=${this.patch.join(",")}&k=${N_OTHERS}`), this.signal);
    const alike = found.others.filter(each => each.at),
      low = Math.min(...[found, ...alike].map(each => ends(each.values)[0]));
    if (alike.length)
      say(`likeness drawn; the best match in other photographs is ${num(Math.max(...alike.map(each => each.best)), 3)}`);
    const legend = gradient("cosine", viridis(true), [fixed(low, 2), "1"]);
    return {
      paint: () => drawHeat(this.canvas, found, [low, 1]),
      values: found.values,
      legend,
      others: this.#elsewhere(alike, [low, 1]),
    };
  }

  #elsewhere(alike, range) {
    const [row, column] = this.patch,
      where = `the patch in row ${row + 1}, column ${column + 1}`;
    const told = `What resembles ${where} in the ${count(alike.length, "nearest photograph")}; the square is the best match.`;
    const photos = el(
      "div",
      { class: "photos" },
      alike.map(each => this.#other(each, range)),
    );
    return section("The same in other photographs", el("p", { class: "muted" }, told), photos);
  }

  #other(each, range) {
    const map = el("canvas", { class: "layer", "aria-hidden": "true" }),
      best = el("i", { class: "cell", "aria-hidden": "true" });
    drawHeat(map, each, range);
    map.style.opacity = String(Math.min(this.fade, FADE_OF_OTHERS));
    placeCell(best, each.at, each.rows, each.columns);
    const changes = { patch: each.at.join(","), layer: "similar" };
    return photographLink(this.store, each.image_id, [`cosine ${fixed(each.best, 3)}`], { changes, inside: [map, best] });
  }
}
