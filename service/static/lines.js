// Curves over epochs: every fold pale, the whole in full; read off by mouse or arrow keys.

import { ticks } from "./axes.js";
import { el, num, say, svg } from "./dom.js";

const MOST_WIDTH = 560,
  HEIGHT = 260,
  LEFT = 46,
  RIGHT = 12,
  TOP = 10,
  BOTTOM = 34;

/**
 * title: what it shows. series: [{ name, x: [], y: [], strong: bool }]. range: [low, high] of y, or null for all.
 * choose(name): a pale curve was clicked; chosen: the name of one drawn in full colour.
 */
export function lines({ title, series, range = null, label = "epoch", choose = null, chosen = null }) {
  const WIDTH = Math.min(MOST_WIDTH, innerWidth - 28),
    xs = series.flatMap(each => each.x),
    ys = series.flatMap(each => each.y).filter(Number.isFinite);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)],
    [y0, y1] = range ?? padded(Math.min(...ys), Math.max(...ys));
  const toX = x => LEFT + ((WIDTH - LEFT - RIGHT) * (x - x0)) / (x1 - x0 || 1);
  const toY = y => HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * (Math.min(Math.max(y, y0), y1) - y0)) / (y1 - y0 || 1);
  const rule = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const drawn = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "lines", "aria-hidden": "true" },
    ticks(y0, y1, 5)
      .map(y => [
        svg("line", { class: "rule", x1: LEFT, x2: WIDTH - RIGHT, y1: toY(y), y2: toY(y) }),
        svg("text", { x: LEFT - 6, y: toY(y) + 4, "text-anchor": "end" }, num(y, 3)),
      ])
      .flat(),
    ticks(x0, x1, 6).map(x => svg("text", { x: toX(x), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, num(x))),
    svg("text", { x: WIDTH - RIGHT, y: HEIGHT - 3, "text-anchor": "end" }, label),
    series.map(each => curve(each, toX, toY, choose, chosen)),
    rule,
  );
  const readout = el("figcaption", {}, title),
    strong = series.filter(each => each.strong || each.name === chosen);
  let at = null;

  function look(x) {
    at = Math.min(Math.max(Math.round(x), x0), x1);
    rule.setAttribute("x1", toX(at));
    rule.setAttribute("x2", toX(at));
    rule.setAttribute("visibility", "visible");
    const shown = (strong.length ? strong : series).map(each => `${each.name} ${num(each.y[each.x.indexOf(at)])}`);
    readout.textContent = `${title} · ${label} ${at}: ${shown.join(", ")}`;
  }
  function leave() {
    at = null;
    rule.setAttribute("visibility", "hidden");
    readout.textContent = title;
  }
  function key(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    look(at === null ? (by > 0 ? x0 : x1) : at + by);
    say(readout.textContent);
  }

  const plot = el(
    "div",
    {
      class: "plot",
      tabindex: 0,
      role: "application",
      "aria-roledescription": "line chart",
      onkeydown: key,
      onblur: leave,
      "aria-label": `${title} by ${label}; left and right arrow keys read it off`,
      onpointermove: event => {
        const box = drawn.getBoundingClientRect();
        look(x0 + ((((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT)) * (x1 - x0));
      },
      onpointerleave: leave,
    },
    drawn,
  );
  return el("figure", {}, readout, plot);
}

const padded = (low, high) => {
  const room = (high - low || 1) * 0.05;
  return [low - room, high + room];
};

function curve({ name, x, y, strong }, toX, toY, choose, chosen) {
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
  const kind = strong ? "strong" : name === chosen ? "chosen" : "pale",
    click = choose && !strong ? () => choose(name) : null;
  return svg(
    "g",
    { class: kind, ...(click ? { onclick: click } : {}) },
    svg("title", {}, name),
    svg("path", { d: path }),
    click ? svg("path", { d: path, class: "hit" }) : null,
  );
}
