// Colours of the map that runs tell out of fold: the error of one, or which of two is nearer to the truth.

import { early, get, table, withQuery } from "./api.js";
import { el, plain, select, unitOf } from "./dom.js";
import { besideUrl, comparable, sidesOf } from "./sides.js";
import { given, go, href, refused } from "./state.js";

const ERROR = "error:", // and a target
  NEARER = "nearer:";

/** The target of such a colour, null of all others. */
export const targetOf = colour => [ERROR, NEARER].find(start => colour.startsWith(start)) && colour.slice(colour.indexOf(":") + 1);
const isOfTwo = colour => colour.startsWith(NEARER);

export class RunColours {
  /** chosen: { colour, run, b }; names: columns of the catalog; colourField: where the colours are added; choose(changes): of chosen. */
  constructor({ chosen, signal, store, every, sweep, sweeps, names, colourField, choose }) {
    Object.assign(this, { chosen, signal, store, every, sweep, sweeps, names, colourField, choose });
    this.root = el("div", { class: "side-fields" });
    this.classes = []; // of the sweep's targets
    this.ready = early(this.#offer());
  }

  /** Add what the sweep's runs tell to the colours. */
  async #offer() {
    if (!this.sweep) return;
    const about = await get(this.sweep.url, this.signal),
      { chosen } = this,
      runs = comparable(about),
      targets = this.names.filter(name => about.targets.includes(name)); // in the catalog's order
    this.classes = about.classes;
    chosen.run = given(chosen, "run", runs) ?? [about.best, runs[0]].find(name => runs.includes(name));
    const target = targetOf(chosen.colour);
    if (target) given(chosen, "colour", [...targets.map(name => ERROR + name), ...targets.map(name => NEARER + name)]);
    if (!runs.length || !targets.length) return;
    const option = (start, told) => name =>
      el("option", { value: start + name, selected: start + name === chosen.colour }, `${told(name)} ${plain(name)}`);
    const ofOne = name => (this.classes.includes(name) ? "probability of the true" : "error of");
    this.colourField.querySelector("select").append(
      el("optgroup", { label: "Out of fold" }, targets.map(option(ERROR, ofOne))),
      el("optgroup", { label: "Which of two runs is nearer" }, targets.map(option(NEARER, () => "A or B:"))),
    );
    this.runs = runs;
    await this.show();
  }

  /** The fields that the present colour needs. */
  async show() {
    const { colour, run } = this.chosen,
      isShown = this.runs && targetOf(colour);
    const fields = isShown ? [this.#sweepField(), this.#runField(run)] : [];
    if (isShown && isOfTwo(colour)) fields.push(await this.#otherField());
    this.root.replaceChildren(...fields.filter(Boolean));
  }

  #sweepField() {
    if (this.sweeps.length < 2) return null;
    const names = this.sweeps.map(({ name }) => [name, name]);
    return select("Sweep", names, this.sweep.name, name => go(href({ sweep: name, run: null })));
  }

  #runField(run) {
    const names = this.runs.map(name => [name, name]),
      label = isOfTwo(this.chosen.colour) ? "Run A" : "Run";
    return select(this.sweeps.length > 1 ? `${label} of ${this.sweep.name}` : label, names, run, name => this.choose({ run: name }));
  }

  /** Runs of all sweeps, as the other one. */
  async #otherField() {
    const [, b] = await this.#sides(),
      abouts = await Promise.all(this.sweeps.map(sweep => get(sweep.url, this.signal)));
    const groups = this.sweeps.map(({ name }, k) => [name, comparable(abouts[k]).map(run => [`${name}/${run}`, run])]);
    const label = this.sweeps.length > 1 ? `Run B of ${b.sweep.name}` : "Run B";
    return select(label, groups, `${b.sweep.name}/${b.run}`, name => this.choose({ b: name }));
  }

  #sides() {
    const { run, b } = this.chosen;
    return sidesOf({ a: `${this.sweep.name}/${run}`, b }, this.sweeps, this.signal);
  }

  /** { name, values, ... } for a scale, a value a point of those that are under way. */
  async values(points) {
    await this.ready;
    if (!this.chosen.run) throw refused("no served sweep has predictions out of fold");
    const target = targetOf(this.chosen.colour),
      isClass = this.classes.includes(target);
    const told = isOfTwo(this.chosen.colour) ? await this.#ofTwo(target, isClass) : await this.#ofOne(target, isClass);
    const ids = (await points).column("image_id");
    return { ...told, values: ids.map(id => told.byId.get(id) ?? null), unit: isClass ? "" : unitOf(target) };
  }

  async #ofOne(target, isClass) {
    const oofs = `${this.sweep.url}/runs/${encodeURIComponent(this.chosen.run)}/oof.json`,
      some = { sweep: this.sweep.name, run: this.chosen.run, target, every: this.every },
      url = this.every ? withQuery(`${this.store.url}/photographs.json`, some) : withQuery(oofs, { averaged: 1, weights: "last" });
    const shown = isClass ? "predicted" : "error"; // of a class, the probability of the true word
    return {
      name: isClass ? `probability of the true ${plain(target)}` : `${plain(target)}, predicted − true`,
      byId: byIdOf(await table(url, this.signal), row => row[shown], this.every ? null : target),
      none: `The run ${this.chosen.run} predicts no ${plain(target)}, so that every point is gray: choose another run or colour.`,
      centred: !isClass,
      runs: this.chosen.run,
      from: [url, "Predictions out of fold"],
    };
  }

  /** How much nearer B is than A. */
  async #ofTwo(target, isClass) {
    const sides = await this.#sides(),
      [a, b] = sides,
      told = isClass ? "predicted" : "error",
      drawn = { store: this.store.name, every: this.every, columns: `image_id,${told}_a,${told}_b` };
    const url = withQuery(`${besideUrl(a, b)}/photographs.json`, { target, ...(this.every && drawn) });
    const nearer = isClass ? (p, q) => less(q, p) : (p, q) => less(size(p), size(q));
    return {
      name: `${plain(target)}: B is ${isClass ? "surer of" : "nearer to"} the truth by`,
      byId: byIdOf(await table(url, this.signal), row => nearer(row[`${told}_a`], row[`${told}_b`])),
      none: `${a.run} and ${b.run} do not both predict ${plain(target)}: choose other runs or another colour.`,
      centred: true,
      runs: `A: ${a.run}, B: ${b.run}`,
      from: [url, "Errors of both"],
    };
  }
}

const size = value => (value === null ? null : Math.abs(value));
const less = (value, other) => (value === null || other === null ? null : value - other);

/** What rows tell, of a target where there are several, by photograph; null where they are of one alone. */
function byIdOf(found, of, target = null) {
  const rows = found.rows().filter(row => !target || row.target === target);
  return new Map(rows.map(row => [row.image_id, of(row)]));
}
