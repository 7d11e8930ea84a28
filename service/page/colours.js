// Colours of data: ordered and seen alike by colour-blind eyes. A scale turns a column into packed pixels and a legend.

import { day, dayText, isDate } from "./dates.js";
import { el, num } from "./dom.js";

const VIRIDIS = ["440154", "482475", "414487", "355f8d", "2a788e", "21908d", "22a884", "42be71", "7ad151", "bddf26", "fde725"];
const OKABE_ITO = ["0072b2", "e69f00", "009e73", "cc79a7", "56b4e9", "d55e00", "c0b000"]; // yellow darkened, to be seen on white
const DIVERGING = {
  light: ["1f5fa8", "86abd0", "a9b0b4", "dfa06a", "a8480b"],
  dark: ["7cb8ff", "4f7ba8", "555b5f", "b57f4a", "ffb36b"],
};
const VISIBLE = { light: [0, 0.88], dark: [0.17, 1] }; // the part of viridis that stands out from the paper

export const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = () => (dark.matches ? "dark" : "light");

const rgb = hex => [0, 2, 4].map(i => parseInt(hex.slice(i, i + 2), 16));
export const pack = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0; // little-endian RGBA
export const css = packed => `rgb(${packed & 255} ${(packed >> 8) & 255} ${(packed >> 16) & 255})`;

function along(stops, share) {
  const x = Math.min(Math.max(share, 0), 1) * (stops.length - 1),
    i = Math.min(Math.floor(x), stops.length - 2);
  return stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * (x - i)));
}

function ramp(hexes, low = 0, high = 1) {
  const stops = hexes.map(rgb);
  return Uint32Array.from({ length: 256 }, (_, i) => pack(along(stops, low + ((high - low) * i) / 255)));
}

export const viridis = (whole = false) => ramp(VIRIDIS, ...(whole ? [0, 1] : VISIBLE[theme()]));
export const diverging = () => ramp(DIVERGING[theme()]);
export const missing = () => pack(rgb(dark.matches ? "4a5054" : "c9ced1"));
export const category = i => pack(rgb(OKABE_ITO[i % OKABE_ITO.length]));

/** What kind of scale fits a column: "number", "date" or "text". */
export function kindOf(values) {
  const there = values.filter(value => value !== null && value !== "");
  if (there.every(value => typeof value === "number" || typeof value === "boolean")) return "number";
  return there.every(isDate) ? "date" : "text";
}

/** { packed: Uint32Array, legend, text(i) } of a column; `centred` puts zero in the middle of a diverging ramp. */
export function scale(name, values, { centred = false, unit = "" } = {}) {
  const kind = kindOf(values);
  if (kind === "text") return byCategory(name, values);
  const numbers = Float64Array.from(values, value =>
    value === null || value === "" ? NaN : kind === "date" ? day(value) : Number(value),
  );
  const write = kind === "date" ? dayText : value => `${num(value, 3)}${unit}`;
  return byNumber(name, numbers, write, centred);
}

function byNumber(name, numbers, write, centred) {
  const sorted = numbers.filter(Number.isFinite).sort();
  const at = share => sorted[Math.round(share * (sorted.length - 1))] ?? 0;
  let [low, high] = sorted.length > 50 ? [at(0.01), at(0.99)] : [at(0), at(1)]; // a few far ones must not take the whole scale
  if (centred) [low, high] = [-1, 1].map(side => side * Math.max(Math.abs(low), Math.abs(high), 1e-9));
  const colours = centred ? diverging() : viridis(),
    none = missing(),
    span = high - low || 1;
  const packed = Uint32Array.from(numbers, x =>
    Number.isFinite(x) ? colours[Math.min(255, Math.max(0, Math.round((255 * (x - low)) / span)))] : none,
  );
  const clipped = sorted.length && (sorted[0] < low || sorted.at(-1) > high);
  const legend = gradient(name, colours, [(clipped ? "≤ " : "") + write(low), (clipped ? "≥ " : "") + write(high)]);
  return {
    packed,
    legend: withMissing(legend, numbers.length - sorted.length),
    text: i => (Number.isFinite(numbers[i]) ? write(numbers[i]) : "not known"),
  };
}

function byCategory(name, values) {
  const counts = new Map();
  for (const value of values) if (value) counts.set(value, (counts.get(value) ?? 0) + 1);
  const names = [...counts]
    .sort((a, b) => b[1] - a[1])
    .slice(0, OKABE_ITO.length)
    .map(([value]) => value)
    .sort(new Intl.Collator(undefined, { numeric: true }).compare);
  const index = new Map(names.map((value, i) => [value, i])),
    none = missing();
  const packed = Uint32Array.from(values, value => (index.has(value) ? category(index.get(value)) : none));
  const chips = names.map((value, i) => chip(category(i), `${value} (${counts.get(value)})`));
  const others = values.filter(value => value && !index.has(value)).length,
    empty = values.filter(value => !value).length;
  if (others) chips.push(chip(none, `${counts.size - names.length} others (${others})`));
  const legend = el("div", { class: "legend" }, el("span", { class: "legend-name" }, name), ...chips);
  return { packed, legend: withMissing(legend, empty), text: i => values[i] || "not known" };
}

function chip(packed, text) {
  const dot = el("i", { "aria-hidden": "true" });
  dot.style.backgroundColor = css(packed);
  return el("span", { class: "chip" }, dot, text);
}

function withMissing(legend, n) {
  if (n) legend.append(chip(missing(), `not known (${n})`));
  return legend;
}

/** A bar of colours with its two ends. */
export function gradient(name, colours, [low, high]) {
  const bar = el("canvas", { width: 256, height: 1, class: "ramp", "aria-hidden": "true" }),
    ctx = bar.getContext("2d", { willReadFrequently: true }); // read once more where a chart is saved
  const pixels = ctx.createImageData(256, 1);
  new Uint32Array(pixels.data.buffer).set(colours);
  ctx.putImageData(pixels, 0, 0);
  return el(
    "div",
    { class: "legend" },
    el("span", { class: "legend-name" }, name),
    el("span", { class: "chip" }, el("span", {}, low), bar, el("span", {}, high)),
  );
}
