// Curves over epochs: every fold in its colour, the whole in full; read off by mouse or arrow keys. A point of a curve stands for
// the photographs of its fold: a click, or Enter, asks for them.

import { ticks } from "./axes.js";
import { el, num, say, svg } from "./dom.js";
import { savers } from "./save.js";

const HEIGHT = 260,
  LEFT = 50,
  RIGHT = 12,
  TOP = 10,
  BOTTOM = 42,
  REACH_PX = 16,
  FAR = -20, // heights below the frame: as far as a path is drawn
  WIDE_RANGE = 10; // greatest to least, from where a positive quantity is drawn by its logarithm

let made = 0;

/**
 * title: what it shows. series: [{ name, key, x: [], y: [], strong: bool, colour }]. from: the x whose y, and later ones, the axis
 * holds; what is lower before is cut off.
 * choose(key): a point of a curve was clicked; leads: to what that leads. legend: see `savers`. What comes back: { root, mark(key) }, which draws that curve in full.
 */
export function lines({ title, series, from = -Infinity, label = "epoch", choose, chosen = "", leads = "the fold's photographs", legend }) {
  const xs = series.flatMap(each => each.x),
    late = series.flatMap(each => each.y.filter((y, i) => Number.isFinite(y) && each.x[i] >= from)),
    isPositive = series.every(each => each.y.every(y => !(y <= 0))); // what is cut off is drawn too, below the frame
  const [x0, x1] = [least(xs), -least(xs.map(x => -x))],
    scale = yScale(late.length ? late : [0, 1], isPositive),
    isCut = series.some(each => each.y.some(y => scale.share(y) < 0));
  const readout = el("figcaption"),
    told = `${title}${scale.log ? ", logarithmic" : ""}${isCut ? ", the first epochs below" : ""}`,
    cut = `cut-${++made}`;
  let width = 0,
    at = null, // epoch
    on = null; // curve

  const toX = x => LEFT + ((width - LEFT - RIGHT) * (x - x0)) / (x1 - x0 || 1);
  const toY = y => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * Math.max(scale.share(y), FAR);
  const value = each => each.y[each.x.indexOf(at)];
  const rule = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM }),
    dot = svg("circle", { class: "dot", r: 4.5 });

  function draw() {
    const middle = (LEFT + width - RIGHT) / 2;
    drawn.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    drawn.replaceChildren(
      ...scale.ticks.flatMap(y => [
        svg("line", { class: "rule", x1: LEFT, x2: width - RIGHT, y1: toY(y), y2: toY(y) }),
        svg("text", { x: LEFT - 6, y: toY(y) + 4, "text-anchor": "end" }, num(y, 3)),
      ]),
      ...ticks(x0, x1, width / 80)
        .filter(Number.isInteger)
        .map(x => svg("text", { x: toX(x), y: HEIGHT - BOTTOM + 17, "text-anchor": "middle" }, num(x))),
      svg("text", { x: middle, y: HEIGHT - 6, "text-anchor": "middle" }, label),
      svg("clipPath", { id: cut }, svg("rect", { x: 0, y: 0, width, height: HEIGHT - BOTTOM + 1 })),
      svg(
        "g",
        { "clip-path": `url(#${cut})` },
        series.map(each => curve(each, toX, toY, each.key === chosen && !each.strong)),
      ),
      rule,
      dot,
    );
    show();
  }

  /** The cursor, the point, and the words for both. */
  function show() {
    const there = on && scale.share(value(on)) >= 0;
    rule.toggleAttribute("hidden", at === null);
    dot.toggleAttribute("hidden", !there);
    plot.classList.toggle("on-point", Boolean(there));
    readout.textContent = at === null ? told : `${told} · ${label} ${at}: ${words()}`;
    if (at === null) return;
    ["x1", "x2"].forEach(end => rule.setAttribute(end, toX(at)));
    if (!there) return;
    dot.setAttribute("cx", toX(at));
    dot.setAttribute("cy", toY(value(on)));
    dot.style.fill = on.colour ?? "";
  }

  function words() {
    const full = series.filter(each => each.strong || each.key === chosen);
    const shown = on ? [on] : full.length ? full : series;
    return shown.map(each => `${each.name} ${num(value(each), 3)}`).join(", ");
  }

  function look(x, curveThere) {
    at = Math.min(Math.max(Math.round(x), x0), x1);
    on = curveThere();
    show();
  }
  function leave() {
    [at, on] = [null, null];
    show();
  }
  /** Under the mouse: the epoch, and the curve nearest to it. */
  function point(event) {
    const box = drawn.getBoundingClientRect(),
      y = event.clientY - box.top,
      away = each => Math.abs(toY(value(each)) - y);
    look(x0 + ((event.clientX - box.left - LEFT) / (width - LEFT - RIGHT)) * (x1 - x0), () => {
      const near = series.filter(each => away(each) <= REACH_PX).sort((a, b) => away(a) - away(b));
      return near[0] ?? null;
    });
  }
  function click(event) {
    const [was, then] = [on, at];
    point(event);
    if (on && (event.pointerType !== "touch" || (on === was && at === then))) choose(on.key); // a finger's first tap shows
  }
  /** The curve above or below the present one, at this epoch. */
  function beside(up) {
    const order = series.filter(each => Number.isFinite(value(each))).sort((a, b) => value(a) - value(b));
    const k = order.indexOf(on);
    return order[k < 0 ? (up > 0 ? 0 : order.length - 1) : Math.min(Math.max(k + up, 0), order.length - 1)] ?? null;
  }
  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const [right, up] = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key] ?? [];
    if (event.key === "Enter" && at !== null) choose((on ?? series.find(each => each.strong) ?? series[0]).key);
    else if (event.key === "Escape") leave();
    else if (right) look(at === null ? (right > 0 ? x0 : x1) : at + right, () => on);
    else if (up) look(at ?? x1, () => beside(up));
    else return;
    event.preventDefault();
    if (right || up) say(readout.textContent);
  }

  const drawn = svg("svg", { class: "lines", "aria-hidden": "true" });
  const keys = `left and right arrow keys go along, up and down from curve to curve, Enter leads to ${leads}`;
  const plot = el(
    "div",
    {
      class: "plot",
      tabindex: 0,
      role: "application",
      "aria-roledescription": "line chart",
      "aria-label": `${told} by ${label}; ${keys}`,
      onkeydown: key,
      onblur: leave,
      onclick: click,
      onpointermove: event => event.pointerType !== "touch" && point(event),
      onpointerleave: event => event.pointerType !== "touch" && leave(),
    },
    drawn,
  );
  new ResizeObserver(() => {
    width = plot.clientWidth;
    if (width) draw();
  }).observe(plot);
  const mark = key => {
    chosen = key;
    if (width) draw();
  };

  /** All of it, with a context: to be saved. */
  function paint(ctx) {
    const colours = getComputedStyle(drawn),
      ink = name => colours.getPropertyValue(`--${name}`).trim();
    const stroke = (points, colour, thick, alpha = 1) => {
      ctx.beginPath();
      points.forEach(([x, y], k) => (k ? ctx.lineTo(x, y) : ctx.moveTo(x, y)));
      Object.assign(ctx, { strokeStyle: colour, lineWidth: thick, globalAlpha: alpha });
      ctx.stroke();
      ctx.globalAlpha = 1;
    };
    const word = (text, x, y, textAlign) => {
      Object.assign(ctx, { font: "12px system-ui, sans-serif", fillStyle: ink("muted"), textAlign, textBaseline: "alphabetic" });
      ctx.fillText(text, x, y);
    };
    for (const y of scale.ticks) {
      const at = toY(y);
      stroke([[LEFT, at], [width - RIGHT, at]], ink("rule"), 1);
      word(num(y, 3), LEFT - 6, at + 4, "right");
    }
    for (const x of ticks(x0, x1, width / 80).filter(Number.isInteger)) word(num(x), toX(x), HEIGHT - BOTTOM + 17, "center");
    word(label, (LEFT + width - RIGHT) / 2, HEIGHT - 6, "center");
    for (const each of series) {
      const full = each.strong || each.key === chosen,
        colour = each.colour ?? ink(each.strong ? "ink" : "muted");
      for (const piece of pieces(each, toX, toY, HEIGHT - BOTTOM)) stroke(piece, colour, full ? 2.25 : 1.25, full ? 1 : 0.7);
    }
  }
  const chart = { size: () => [width, HEIGHT], paint };
  return { root: el("figure", {}, readout, plot, savers(told, chart, legend)), mark };
}

/** The pieces of a curve that lie above the height `floor`, as lists of [x, y]. */
function pieces({ x, y }, toX, toY, floor) {
  const found = [[]];
  let last = null;
  const cross = ([ax, ay], [bx, by]) => [ax + ((floor - ay) / (by - ay)) * (bx - ax), floor];
  x.forEach((value, i) => {
    const at = Number.isFinite(y[i]) ? [toX(value), toY(y[i])] : null,
      [isIn, wasIn] = [at, last].map(point => point !== null && point[1] <= floor);
    if (isIn && last && !wasIn) found.push([cross(last, at)]);
    if (wasIn && at && !isIn) found.at(-1).push(cross(last, at));
    if (isIn) found.at(-1).push(at);
    else found.push([]);
    last = at;
  });
  return found.filter(piece => piece.length > 1);
}

/** { share(y), ticks, log } of an axis: these ys lie within shares 0 and 1. isPositive: whether all that is drawn is above 0. */
function yScale(ys, isPositive) {
  const [from, to] = [least(ys), -least(ys.map(y => -y))],
    log = isPositive && to > WIDE_RANGE * from;
  const along = log ? Math.log10 : y => y,
    [low, high] = padded(along(from), along(to));
  const share = y => (along(y) - low) / (high - low);
  return { share, log, ticks: log ? powers(10 ** low, 10 ** high) : ticks(low, high, 5) };
}

const least = values => values.reduce((a, b) => Math.min(a, b), Infinity); // there may be too many for Math.min's arguments

const padded = (low, high) => {
  const room = (high - low || 1) * 0.05;
  return [low - room, high + room];
};

/** Round values within [low, high] of a logarithmic axis: 1, 2, 5, or powers of ten alone where those are many. */
function powers(low, high) {
  const first = Math.floor(Math.log10(low)),
    n = Math.ceil(Math.log10(high)) - first + 1;
  const steps = n > 4 ? [1] : [1, 2, 5];
  const all = Array.from({ length: n }, (_, i) => steps.map(step => Number(`${step}e${first + i}`))).flat();
  return all.filter(each => each >= low && each <= high);
}

function curve({ name, x, y, strong, colour }, toX, toY, chosen) {
  let path = "",
    pen = "M";
  for (let i = 0; i < x.length; i++) {
    if (!Number.isFinite(y[i])) {
      pen = "M";
      continue;
    }
    path += `${pen}${toX(x[i]).toFixed(1)} ${toY(y[i]).toFixed(1)}`;
    pen = "L";
  }
  const drawn = svg("path", { d: path, class: strong ? "strong" : chosen ? "chosen" : "pale" }, svg("title", {}, name));
  if (colour) drawn.style.stroke = colour;
  return drawn;
}
