// Small marks within tables: a value, its spread, and what it is compared with, on one line that all rows share.

import { svg } from "./dom.js";

const WIDTH = 200,
  HEIGHT = 16;

/** [low, high] that holds all of `values`, with a little room. */
export function span(values, zero = false) {
  const there = values.filter(Number.isFinite).concat(zero ? [0] : []);
  const low = Math.min(...there),
    high = Math.max(...there),
    room = (high - low || Math.abs(high) || 1) * 0.06;
  return there.length ? [low - room, high + room] : [0, 1];
}

/**
 * A picture of one row: `value` as a dot, `low` to `high` as a whisker, `marks` ({ value, kind }) as upright lines.
 * It repeats numbers of the row, so ears are spared it.
 */
export function track([from, to], { value, low, high, marks = [], kind = "" }) {
  const x = each => ((WIDTH * (Math.min(Math.max(each, from), to) - from)) / (to - from)).toFixed(1),
    y = HEIGHT / 2;
  const inside = each => Number.isFinite(each) && each >= from && each <= to;
  return svg(
    "svg",
    { class: `track ${kind}`, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }),
    marks
      .filter(mark => inside(mark.value))
      .map(mark => svg("line", { class: `mark ${mark.kind}`, x1: x(mark.value), x2: x(mark.value), y1: 0, y2: HEIGHT })),
    Number.isFinite(low) && Number.isFinite(high)
      ? svg("line", { class: "whisker", x1: x(low), x2: x(high), y1: y, y2: y })
      : null,
    inside(value) ? svg("line", { class: "dot", x1: x(value), x2: x(value), y1: y, y2: y }) : null,
  );
}
