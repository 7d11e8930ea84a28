// Elements and the few pieces every view is made of. Text comes in as text nodes only, so nothing needs escaping.

import { here } from "./api.js";
import { href } from "./state.js";

const SVG = "http://www.w3.org/2000/svg",
  UNKNOWN = "not known",
  LONG = 18; // letters of a fact that takes a line of its own where there is little room

/** An element. Attributes that are functions are listeners (`onclick`); null and false are left out. */
export const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter(child => child !== null && child !== undefined && child !== false));
  return node;
}

/** For ears: said once, seen nowhere. */
export const say = text => {
  document.getElementById("status").textContent = text;
};

/** A number short enough to read. */
export function num(value, digits = 4) {
  if (value === null || value === undefined || value === "") return UNKNOWN;
  if (typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return "not finite";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e7) return value.toLocaleString("en");
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2).replaceAll("-", "−");
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

/** A way to write the numbers of one column: as many decimals for each, at most `digits` significant ones for the greatest. */
export function alike(values, digits = 4) {
  const there = values.filter(value => Number.isFinite(value) && value !== 0),
    greatest = Math.max(...there.map(Math.abs), 1e-12),
    least = Math.min(...there.map(Math.abs), greatest);
  const decimals = value => String(Number(value.toPrecision(digits))).split(".")[1]?.length ?? 0,
    most = Math.min(Math.max(...there.map(decimals), 0), Math.max(digits - 1 - Math.floor(Math.log10(greatest)), 0));
  if (there.every(Number.isInteger) || least < 10 ** -most / 2 || greatest >= 1e7) return value => num(value, digits);
  return value => (Number.isFinite(value) ? fixed(value, most) : num(value));
}

export const fixed = (value, decimals) => (Number.isFinite(value) ? withSign(value, Math.abs(value).toFixed(decimals)) : UNKNOWN);
/** The text of a number's size with its sign before it; none where it was rounded to 0. */
export const withSign = (value, size, plus = "") => `${Number(size) === 0 ? "" : value < 0 ? "−" : plus}${size}`;
/** Of a target: grams, where its name ends so, to a tenth; what else there is to three digits, its unit is not known. */
export const unitOf = name => (name.endsWith("_g") ? " g" : "");
export const amount = (name, value) => (unitOf(name) ? fixed(value, 1) : num(value, 3));
export const withUnit = (name, value) => `${amount(name, value)}${Number.isFinite(value) ? unitOf(name) : ""}`;
export const axisOf = name => (unitOf(name) ? ", g" : "");
export const signed = (name, value) =>
  Number.isFinite(value) ? withSign(value, amount(name, Math.abs(value)), "+") : UNKNOWN;
export const count = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
/** A column as people read it: without its unit, which stands with the numbers. */
export const plain = name => name.replace(/_g$/, "").replace(/_/g, " ");

/** The same names, this one first. */
export const foremost = (names, first) => [...names.filter(name => name === first), ...names.filter(name => name !== first)];

export function bytes(n) {
  const power = [12, 9, 6, 3].find(each => n >= 10 ** each) ?? 0;
  return `${Number((n / 10 ** power).toPrecision(3))} ${{ 12: "TB", 9: "GB", 6: "MB", 3: "kB", 0: "bytes" }[power]}`;
}

/** Links to what is shown, as JSON and CSV. */
export function twins(url, what) {
  const [path, query] = here(url).split("?"),
    rest = query ? `?${query}` : "";
  return el(
    "p",
    { class: "twins" },
    `${what}: `,
    ...["json", "csv"].flatMap((kind, i) => [
      i ? " · " : "",
      el(
        "a",
        { href: `${path.replace(/\.json$/, "")}.${kind}${rest}`, "aria-label": `${what} as ${kind.toUpperCase()}` },
        kind.toUpperCase(),
      ),
    ]),
  );
}

/** A labelled <select>; options are [value, text], or [group, [[value, text], ...]]. stay: its name, if a choice shows the page anew. */
export function select(label, options, chosen, change, stay = null) {
  const option = ([value, text]) => el("option", { value, selected: value === chosen }, text);
  const made = options.map(([value, text]) =>
    Array.isArray(text) ? el("optgroup", { label: value }, text.map(option)) : option([value, text]),
  );
  return el(
    "label",
    { class: "field" },
    el("span", {}, label),
    el("select", { "data-stay": stay, onchange: event => change(event.target.value) }, made),
  );
}

export function facts(pairs) {
  return el(
    "dl",
    { class: "facts" },
    pairs
      .filter(([, value]) => value !== null && value !== undefined)
      .map(([name, value]) =>
        el("div", { class: String(value).length > LONG ? "wide" : null }, el("dt", {}, name), el("dd", {}, value)),
      ),
  );
}

export const section = (title, ...children) => el("section", {}, el("h2", {}, title), ...children);
export const subsection = (title, ...children) => el("section", {}, el("h3", { tabindex: -1 }, title), ...children);

/** A wide thing that scrolls by itself, on a phone too. */
export const scroller = (label, ...children) =>
  el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, ...children);

/** What the server said, in place of what it did not give. */
export function problem(err) {
  return el(
    "div",
    { class: "problem", role: "alert" },
    el("p", {}, el("strong", {}, err.message)),
    err.hint ? el("p", {}, err.hint) : null,
    err.without ? el("p", {}, el("a", { href: href({ [err.without]: null }) }, `Open without this ${err.without}`)) : null,
  );
}

/** A place that loads by itself, says so, and shows the server's message if it fails. */
export function pending(make, what = "Loading …") {
  const place = el("div", { class: "pending", "aria-busy": "true" }, el("p", { class: "loading" }, what));
  Promise.resolve()
    .then(make)
    .then(
      made => place.replaceChildren(...[made].flat().filter(Boolean)),
      err => {
        if (err.name !== "AbortError") {
          place.replaceChildren(problem(err));
          if (!err.kind) console.error(err);
        }
      },
    )
    .finally(() => place.removeAttribute("aria-busy"));
  return place;
}
