// A chart whose every point is a photograph: hover shows it, a click opens it, and so do the arrow keys and Enter.
//
// Three canvases lie on each other: axes, points, and the ring around the point looked at, so that hovering redraws no point.

import { drawAxes } from "./axes.js";
import { css, dark, pack } from "./colours.js";
import { el, say } from "./dom.js";
import { bounds, GridIndex, towards } from "./grid.js";
import { gestures } from "./gestures.js";
import { splat, Stamp } from "./splat.js";

const MOST_DRAWN = 100_000, // points; of more, some
  SOME_DRAWN = 20_000;
const SOFT = 10_000; // points up to which edges are smooth: 100,000 must pan within a frame
const HOVER_PX = 14,
  TIP_PX = 14,
  MARGIN = 0.05;
const KEYS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

/** Of n points a chart draws one in so many; null: all of them. */
export const everyOf = n => (n > MOST_DRAWN ? Math.ceil(n / SOME_DRAWN) : null);

export class Scatter {
  /**
   * label: what it shows, for ears. axes: { x: { label, format }, y } or null. equal: one scale for both. zoom: pan and zoom.
   * describe(i): a line; card(i): an element, or null; open(i): a click or Enter; onbox(box or null): zoomed to.
   * below(ctx, toX, toY): drawn under the points, above(...): over them, in CSS pixels.
   * onlasso(corners): a line was drawn around points; `lassoing` says whether a drag draws one.
   */
  constructor(options) {
    Object.assign(
      this,
      { axes: null, equal: false, zoom: false, onbox: () => {}, describe: () => "", card: () => null },
      options,
    );
    this.canvases = ["under", "points", "over"].map(name => el("canvas", { class: name, "aria-hidden": "true" }));
    this.tip = el("div", { class: "tip", hidden: true });
    const keys = this.zoom
      ? "arrow keys go from point to point, with Shift they move the map, Enter opens, plus and minus zoom, 0 shows all"
      : "arrow keys go from point to point, Enter opens";
    this.root = el(
      "div",
      {
        class: `scatter ${options.class ?? ""}`,
        tabindex: 0,
        role: "application",
        "aria-roledescription": "scatter plot",
        "aria-label": `${this.label}; ${keys}`,
        onkeydown: event => this.#key(event),
        onblur: () => this.look(-1),
      },
      this.canvases,
      this.tip,
    );
    if (this.zoom) this.root.classList.add("zoomable");
    gestures(this.root, this);
    this.at = -1;
    this.lassoing = false;
    this.lasso = []; // corners [x, y], in data units
    new ResizeObserver(() => this.#resize()).observe(this.root);
    dark.addEventListener("change", () => this.redraw());
  }

  /** Show points: x, y typed arrays; colours packed; shown: which of them (Uint8Array) or null; box: where to look, or null for all. */
  set({ x, y, colours, shown = null, box = null }) {
    const same = this.x === x && this.y === y;
    Object.assign(this, { x, y, colours, shown });
    if (!same) {
      this.index = new GridIndex(x, y);
      this.px = new Float32Array(x.length);
      this.py = new Float32Array(x.length);
      this.all = this.#padded(this.extent ?? bounds(x, y));
      this.box = box ?? this.all;
      this.at = -1;
    }
    this.order = Int32Array.from(x.keys()).filter(i => !shown || shown[i]);
    this.redraw();
  }

  /** Show no points. */
  clear() {
    const none = new Float32Array(0);
    this.lasso = [];
    this.set({ x: none, y: none, colours: new Uint32Array(0) });
  }

  /** Ring a point, as one that one comes back from; -1 rings none. */
  mark(i) {
    this.at = i;
    this.redraw();
  }

  /** Draw the lasso on to a pixel. */
  rope(px, py, begins) {
    const corner = [this.scales.fromX(px), this.scales.fromY(py)];
    this.lasso = begins ? [corner] : [...this.lasso, corner];
    this.#drawOver();
  }

  /** Draw once before the next frame, however often it is asked for. */
  redraw() {
    this.frameAsked ??= requestAnimationFrame(() => {
      this.frameAsked = null;
      if (this.width && this.x) this.#draw();
    });
  }

  #padded([x0, x1, y0, y1]) {
    const dx = (x1 - x0 || 1) * MARGIN,
      dy = (y1 - y0 || 1) * MARGIN;
    return [x0 - dx, x1 + dx, y0 - dy, y1 + dy];
  }

  #resize() {
    const { width, height } = this.root.getBoundingClientRect();
    [this.width, this.height, this.ratio] = [width, height, Math.min(devicePixelRatio || 1, 2)];
    this.frame = this.axes
      ? { left: 44, right: width - 8, top: 20, bottom: height - 40 }
      : { left: 0, right: width, top: 0, bottom: height };
    for (const canvas of this.canvases) {
      canvas.width = Math.round(width * this.ratio);
      canvas.height = Math.round(height * this.ratio);
    }
    this.pixels = null;
    this.redraw();
  }

  #scales() {
    const { left, right, top, bottom } = this.frame,
      [x0, x1, y0, y1] = this.box;
    let kx = (right - left) / (x1 - x0),
      ky = (bottom - top) / (y1 - y0);
    if (this.equal) kx = ky = Math.min(kx, ky);
    const x = (left + right) / 2 - (kx * (x0 + x1)) / 2,
      y = (top + bottom) / 2 + (ky * (y0 + y1)) / 2;
    return {
      kx,
      ky,
      toX: value => x + kx * value,
      toY: value => y - ky * value,
      fromX: px => (px - x) / kx,
      fromY: py => (y - py) / ky,
    };
  }

  #ink() {
    const style = getComputedStyle(document.documentElement);
    return Object.fromEntries(
      ["paper", "ink", "muted", "rule", "bar"].map(name => [name, style.getPropertyValue(`--${name}`).trim()]),
    );
  }

  #radius() {
    const zoom = Math.min((this.all[1] - this.all[0]) / (this.box[1] - this.box[0]), 50);
    const room = Math.sqrt(
      ((this.frame.right - this.frame.left) * (this.frame.bottom - this.frame.top)) / Math.max(this.order.length, 1),
    );
    return Math.min(Math.max(0.13 * room * Math.sqrt(zoom), this.order.length < 2000 ? 2.5 : 1), this.axes ? 4 : 5.5);
  }

  #draw() {
    const scales = (this.scales = this.#scales()),
      ink = this.#ink(),
      [under, points] = this.canvases;
    this.#drawUnder(this.#clear(under), scales, ink);
    this.#drawPoints(points, scales, ink);
    this.#drawOver();
  }

  #drawUnder(ctx, { fromX, fromY, toX, toY }, ink) {
    const { left, right, top, bottom } = this.frame,
      box = [fromX(left), fromX(right), fromY(bottom), fromY(top)];
    if (this.axes) drawAxes(ctx, this.axes, box, this.frame, toX, toY, ink);
    this.below?.(ctx, toX, toY, ink);
  }

  /** Width and height, and all of it drawn with a context that is no canvas of ours: to be saved. */
  size() {
    return this.scales ? [this.width, this.height] : [0, 0];
  }
  paint(ctx) {
    const { scales } = this,
      ink = this.#ink(),
      radius = this.#radius();
    this.#drawUnder(ctx, scales, ink);
    for (const i of this.order) {
      const x = scales.toX(this.x[i]),
        y = scales.toY(this.y[i]);
      if (!(x >= 0 && x <= this.width && y >= 0 && y <= this.height)) continue; // NaN fails too
      ctx.beginPath();
      ctx.arc(x, y, radius, 0, 7);
      ctx.fillStyle = css(this.colours[i]);
      ctx.fill();
    }
    this.above?.(ctx, scales.toX, scales.toY, ink);
    this.#drawLasso(ctx, ink);
  }

  #drawPoints(canvas, { kx, ky, toX, toY }, ink) {
    const ctx = canvas.getContext("2d"),
      { width, height } = canvas,
      r = this.ratio;
    if (!this.pixels) {
      this.image = ctx.createImageData(width, height);
      this.pixels = new Uint32Array(this.image.data.buffer);
    }
    this.pixels.fill(0);
    const x = toX(0) * r,
      y = toY(0) * r,
      stepX = kx * r,
      stepY = ky * r,
      { px, py } = this;
    for (let i = 0; i < px.length; i++) {
      px[i] = x + stepX * this.x[i];
      py[i] = y - stepY * this.y[i];
    }
    const radius = this.#radius() * r,
      stamp = new Stamp(radius, radius > 2.5 ? 0.9 : 0, this.order.length > SOFT);
    splat(this.pixels, width, height, px, py, this.order, this.colours, stamp, packCss(ink.paper));
    ctx.putImageData(this.image, 0, 0);
  }

  #clear(canvas) {
    const ctx = canvas.getContext("2d");
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.clearRect(0, 0, canvas.width, canvas.height);
    ctx.scale(this.ratio, this.ratio);
    return ctx;
  }

  #drawOver() {
    const ctx = this.#clear(this.canvases[2]),
      ink = this.#ink();
    this.above?.(ctx, this.scales.toX, this.scales.toY, ink);
    this.#drawLasso(ctx, ink);
    if (this.at < 0) return;
    ctx.beginPath();
    ctx.arc(this.scales.toX(this.x[this.at]), this.scales.toY(this.y[this.at]), this.#radius() + 4, 0, 7);
    ctx.lineWidth = 2;
    ctx.strokeStyle = ink.ink;
    ctx.stroke();
  }

  #drawLasso(ctx, ink) {
    if (!this.lasso.length) return;
    ctx.beginPath();
    for (const [x, y] of this.lasso) ctx.lineTo(this.scales.toX(x), this.scales.toY(y));
    ctx.closePath();
    ctx.lineWidth = 1.5;
    ctx.setLineDash([5, 4]);
    ctx.strokeStyle = ink.ink;
    ctx.stroke();
    ctx.setLineDash([]);
  }

  /** Look at a point, or at none (-1): ring and card. */
  look(i) {
    if (i === this.at || !this.scales) return;
    this.at = i;
    this.#drawOver();
    const card = i < 0 ? null : this.card(i);
    this.tip.hidden = !card;
    if (!card) return;
    this.tip.replaceChildren(card);
    this.#place(this.scales.toX(this.x[i]), this.scales.toY(this.y[i]));
  }

  /** Hang the card beside a point, towards the middle, and within the chart's width. */
  #place(x, y) {
    const { offsetWidth: width, offsetHeight: height } = this.tip;
    const left = x > this.width / 2 ? x - width - TIP_PX : x + TIP_PX,
      top = y > this.height / 2 ? y - height - TIP_PX : y + TIP_PX;
    this.tip.style.left = `${Math.max(0, Math.min(left, this.width - width))}px`;
    this.tip.style.top = `${top}px`;
  }

  /** The point under the mouse, in CSS pixels from the corner; -1 for none. */
  under(px, py) {
    if (!this.scales) return -1;
    const { kx, ky, fromX, fromY } = this.scales;
    return this.index.nearest(fromX(px), fromY(py), HOVER_PX / kx, HOVER_PX / ky, this.shown);
  }

  /** Move by pixels, then scale by `factor` about a pixel. */
  move(dx, dy, factor, px, py) {
    const { kx, ky, fromX, fromY } = this.scales,
      x = fromX(px),
      y = fromY(py),
      [x0, x1, y0, y1] = this.box;
    const span = ((this.all[1] - this.all[0]) / (x1 - x0)) * factor;
    if (span > 5000 || span < 0.2) factor = 1;
    const [mx, my] = [-dx / kx, dy / ky];
    this.box = [x + (x0 - x) / factor + mx, x + (x1 - x) / factor + mx, y + (y0 - y) / factor + my, y + (y1 - y) / factor + my];
    this.look(-1);
    this.redraw();
    clearTimeout(this.told);
    this.told = setTimeout(() => this.onbox(this.box), 250);
  }

  reset() {
    this.box = this.all;
    this.redraw();
    this.onbox(null);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const middle = this.at < 0 ? [this.width / 2, this.height / 2] : [this.scales.toX(this.x[this.at]), this.scales.toY(this.y[this.at])];
    const zoom = this.zoom ? { "+": 1.5, "=": 1.5, "-": 1 / 1.5 }[event.key] : undefined;
    if (event.key in KEYS && event.shiftKey && this.zoom) this.#pan(...KEYS[event.key]);
    else if (event.key in KEYS) this.#step(...KEYS[event.key]);
    else if (event.key === "Enter" && this.at >= 0) this.open(this.at);
    else if (event.key === "Escape") this.look(-1);
    else if (zoom) this.move(0, 0, zoom, ...middle);
    else if (event.key === "0" && this.zoom) this.reset();
    else return;
    event.preventDefault();
  }

  #pan(right, up) {
    if (this.scales) this.move((-right * this.width) / 5, (up * this.height) / 5, 1, 0, 0);
  }

  #step(right, up) {
    if (!this.scales || !this.order.length) return;
    const { kx, ky, fromX, fromY } = this.scales;
    const start = () =>
      this.index.nearest(fromX(this.width / 2), fromY(this.height / 2), this.width / kx, this.height / ky, this.shown);
    const next = this.at < 0 ? start() : towards(this.x, this.y, this.at, right, up, kx, ky, this.shown);
    if (next < 0) return say("no point further that way");
    this.look(next);
    say(this.describe(next));
  }
}

function packCss(colour) {
  const hex = colour.replace("#", ""),
    whole = hex.length === 3 ? [...hex].map(c => c + c).join("") : hex;
  return pack([0, 2, 4].map(i => parseInt(whole.slice(i, i + 2), 16)));
}
