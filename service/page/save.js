// A chart as a file, PNG or SVG: what draws it on a canvas draws into SVG too.

import { el, say, svg } from "./dom.js";

const TITLE_PX = 30,
  ROW_PX = 24, // of the legend
  MARGIN_PX = 12,
  RATIO = 2, // pixels of a PNG to one of the page
  FONT = "12px system-ui, sans-serif",
  STOPS = 16; // of a gradient
const ANCHOR = { left: "start", center: "middle", right: "end" },
  LIFT = { top: 0.8, middle: 0.35, alphabetic: 0 }; // of a text's size: from where it is put to its line

/** As much of a canvas' context as charts use; it makes elements of SVG. */
class SvgContext {
  constructor(root) {
    Object.assign(this, { root, font: FONT, fillStyle: "#000", strokeStyle: "#000", lineWidth: 1, globalAlpha: 1, dash: [], d: "" });
    Object.assign(this, { textAlign: "left", textBaseline: "alphabetic", ruler: el("canvas").getContext("2d") });
  }

  beginPath() {
    this.d = "";
  }
  moveTo(x, y) {
    this.d += `M${round(x)} ${round(y)}`;
  }
  lineTo(x, y) {
    this.d += `${this.d ? "L" : "M"}${round(x)} ${round(y)}`;
  }
  closePath() {
    this.d += "Z";
  }
  /** A whole circle. */
  arc(x, y, r) {
    this.d += `M${round(x - r)} ${round(y)}a${round(r)} ${round(r)} 0 1 0 ${round(2 * r)} 0a${round(r)} ${round(r)} 0 1 0 ${round(-2 * r)} 0`;
  }
  setLineDash(dash) {
    this.dash = dash;
  }
  measureText(text) {
    this.ruler.font = this.font;
    return this.ruler.measureText(text);
  }

  stroke() {
    const dash = this.dash.length ? { "stroke-dasharray": this.dash.join(" ") } : {};
    this.#add("path", { d: this.d, fill: "none", stroke: this.strokeStyle, "stroke-width": this.lineWidth, ...dash });
  }
  fill() {
    this.#add("path", { d: this.d, fill: this.fillStyle });
  }
  fillRect(x, y, width, height) {
    this.#add("rect", { x: round(x), y: round(y), width: round(width), height: round(height), fill: this.fillStyle });
  }
  fillText(text, x, y) {
    const [, size, family] = /([\d.]+)px (.*)/.exec(this.font),
      lifted = y + LIFT[this.textBaseline] * size;
    const style = { "font-size": size, "font-family": family, fill: this.fillStyle, "text-anchor": ANCHOR[this.textAlign] };
    this.#add("text", { x: round(x), y: round(lifted), ...style }, text);
  }
  /** What is drawn next lies lower or further right. */
  translate(x, y) {
    const group = svg("g", { transform: `translate(${round(x)} ${round(y)})` });
    this.root.append(group);
    this.root = group;
  }

  #add(tag, attributes, ...children) {
    const opacity = this.globalAlpha < 1 ? { opacity: this.globalAlpha } : {};
    this.root.append(svg(tag, { ...attributes, ...opacity }, ...children));
  }
}

const round = value => Number(value.toFixed(2));

/** Links that save a chart: { size() -> [width, height], paint(context) }; title: a text, or what gives one; legend: an element that is
 *  shown, or several. */
export function savers(title, chart, legend = () => null) {
  const named = () => (typeof title === "function" ? title() : title);
  const link = kind =>
    el(
      "button",
      { type: "button", class: "link", "aria-label": `Save this chart as ${kind.toUpperCase()}`, onclick: () => save(kind, named(), chart, legend()) },
      kind.toUpperCase(),
    );
  return el("p", { class: "twins savers" }, "Chart: ", link("png"), " · ", link("svg"));
}

async function save(kind, title, chart, legend) {
  const [width, height] = chart.size();
  if (!width) return;
  const parts = partsOf(legend),
    rows = rowsOf(parts, width),
    whole = [width, TITLE_PX + height + (rows.length ? MARGIN_PX + ROW_PX * rows.length : 0)];
  const blob = await (kind === "svg" ? asSvg : asPng)(whole, ctx => paintAll(ctx, whole, title, chart, rows)),
    url = URL.createObjectURL(blob),
    name = `${title.split(/[·:;]/)[0].trim().replace(/[^\p{L}\p{N}]+/gu, "-").toLowerCase()}.${kind}`;
  const link = el("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
  say(`${name} is saved`);
}

function paintAll(ctx, [width, height], title, chart, rows) {
  const style = getComputedStyle(document.documentElement),
    ink = name => style.getPropertyValue(`--${name}`).trim();
  ctx.fillStyle = ink("paper");
  ctx.fillRect(0, 0, width, height);
  ctx.font = FONT;
  ctx.fillStyle = ink("ink");
  ctx.textAlign = "left";
  ctx.textBaseline = "middle";
  ctx.fillText(title, 4, TITLE_PX / 2);
  ctx.translate(0, TITLE_PX);
  chart.paint(ctx);
  ctx.translate(0, chart.size()[1] + MARGIN_PX);
  ctx.font = FONT;
  ctx.globalAlpha = 1;
  ctx.textAlign = "left";
  ctx.textBaseline = "middle";
  rows.forEach((row, k) => row.forEach(part => paintPart(ctx, part, ROW_PX * (k + 0.5), ink("ink"))));
}

async function asPng([width, height], paint) {
  const canvas = el("canvas", { width: Math.round(RATIO * width), height: Math.round(RATIO * height) }),
    ctx = canvas.getContext("2d");
  ctx.scale(RATIO, RATIO);
  paint(ctx);
  return new Promise(done => canvas.toBlob(done, "image/png"));
}

async function asSvg([width, height], paint) {
  const root = svg("svg", { xmlns: "http://www.w3.org/2000/svg", width, height, viewBox: `0 0 ${width} ${height}` });
  paint(new SvgContext(root));
  return new Blob([new XMLSerializer().serializeToString(root)], { type: "image/svg+xml" });
}

// A legend as the page has it: names, dots with words, and gradients between two ends.

function partsOf(legend) {
  const told = [legend].flat().filter(Boolean),
    elements = told.flatMap(each => [...each.querySelectorAll(".legend-name, .chip")]);
  const parts = elements.map(each => {
    const dot = each.querySelector("i"),
      ramp = each.querySelector("canvas");
    if (ramp) return { ends: [...each.querySelectorAll("span")].map(end => end.textContent), stops: stopsOf(ramp) };
    return { text: each.textContent.trim(), dot: dot && getComputedStyle(dot).backgroundColor };
  });
  return parts.filter(part => part.ends || part.text);
}

function stopsOf(ramp) {
  const { data } = ramp.getContext("2d").getImageData(0, 0, ramp.width, 1);
  return Array.from({ length: STOPS }, (_, k) => {
    const i = 4 * Math.round((k * (ramp.width - 1)) / (STOPS - 1));
    return `rgb(${data[i]} ${data[i + 1]} ${data[i + 2]})`;
  });
}

/** Parts with their places, as many beside each other as have room. */
function rowsOf(parts, width) {
  const ruler = el("canvas").getContext("2d"),
    rows = [];
  ruler.font = FONT;
  const wide = text => ruler.measureText(text).width;
  let x = Infinity;
  for (const part of parts) {
    const own = part.ends ? wide(part.ends.join("")) + 8 * STOPS + 16 : wide(part.text) + (part.dot ? 16 : 0);
    if (x + own > width) {
      rows.push([]);
      x = 4;
    }
    rows.at(-1).push({ ...part, x, low: part.ends && wide(part.ends[0]) });
    x += own + 18;
  }
  return rows;
}

function paintPart(ctx, { x, text, dot, ends, stops, low }, y, ink) {
  if (dot) {
    ctx.beginPath();
    ctx.arc(x + 5, y, 5, 0, 7);
    ctx.fillStyle = dot;
    ctx.fill();
  }
  ctx.fillStyle = ink;
  if (!ends) {
    ctx.fillText(text, x + (dot ? 16 : 0), y);
    return;
  }
  ctx.fillText(ends[0], x, y);
  ctx.fillText(ends[1], x + low + 8 * STOPS + 16, y);
  stops.forEach((stop, k) => {
    ctx.fillStyle = stop;
    ctx.fillRect(x + low + 8 + 8 * k, y - 5, 8, 10);
  });
}
