// Which point is near? Points sorted into square cells once, so that a look at the mouse's surroundings is enough.

/** Index of points in data units; NaN points are in no cell. x, y: Float32Array or Float64Array. */
export class GridIndex {
  constructor(x, y, perCell = 4) {
    Object.assign(this, { x, y });
    this.box = bounds(x, y);
    const [x0, x1, y0, y1] = this.box;
    this.side = Math.max(1, Math.min(1024, Math.ceil(Math.sqrt(x.length / perCell))));
    this.stepX = (x1 - x0) / this.side || 1;
    this.stepY = (y1 - y0) / this.side || 1;
    this.#sort();
  }

  #sort() {
    const n = this.x.length,
      cell = new Int32Array(n).fill(-1),
      start = new Int32Array(this.side ** 2 + 1);
    for (let i = 0; i < n; i++) {
      if (!Number.isFinite(this.x[i]) || !Number.isFinite(this.y[i])) continue;
      cell[i] = this.#column(this.x[i]) + this.side * this.#row(this.y[i]);
      start[cell[i] + 1]++;
    }
    for (let c = 0; c < this.side ** 2; c++) start[c + 1] += start[c];
    const at = start.slice(),
      items = new Int32Array(start[this.side ** 2]);
    for (let i = 0; i < n; i++) if (cell[i] >= 0) items[at[cell[i]]++] = i;
    Object.assign(this, { start, items });
  }

  #column(x) {
    return Math.min(this.side - 1, Math.max(0, Math.floor((x - this.box[0]) / this.stepX)));
  }
  #row(y) {
    return Math.min(this.side - 1, Math.max(0, Math.floor((y - this.box[2]) / this.stepY)));
  }

  /** The point nearest to (x, y) within dx and dy, distances measured in those units; -1 if there is none. */
  nearest(x, y, dx, dy, shown = null) {
    let best = -1,
      least = 1;
    for (let row = this.#row(y - dy); row <= this.#row(y + dy); row++) {
      const first = this.start[row * this.side + this.#column(x - dx)],
        end = this.start[row * this.side + this.#column(x + dx) + 1];
      for (let k = first; k < end; k++) {
        const i = this.items[k],
          away = ((this.x[i] - x) / dx) ** 2 + ((this.y[i] - y) / dy) ** 2;
        if (away <= least && (!shown || shown[i])) [best, least] = [i, away];
      }
    }
    return best;
  }
}

/** [x0, x1, y0, y1] of what is finite. */
export function bounds(x, y) {
  const box = [Infinity, -Infinity, Infinity, -Infinity];
  for (let i = 0; i < x.length; i++) {
    if (!Number.isFinite(x[i]) || !Number.isFinite(y[i])) continue;
    if (x[i] < box[0]) box[0] = x[i];
    if (x[i] > box[1]) box[1] = x[i];
    if (y[i] < box[2]) box[2] = y[i];
    if (y[i] > box[3]) box[3] = y[i];
  }
  return box[0] > box[1] ? [0, 1, 0, 1] : box;
}

/** The next point to the right, left, up or down of point `from`: near, and rather straight than aside; -1 if none. */
export function towards(x, y, from, right, up, scaleX, scaleY, shown = null) {
  let best = -1,
    least = Infinity;
  for (let i = 0; i < x.length; i++) {
    if (i === from || (shown && !shown[i])) continue;
    const dx = (x[i] - x[from]) * scaleX,
      dy = (y[i] - y[from]) * scaleY;
    const ahead = dx * right + dy * up,
      aside = Math.abs(dx * up) + Math.abs(dy * right);
    if (!(ahead > 0) || aside > 2 * ahead) continue;
    const cost = ahead + 2 * aside;
    if (cost < least) [best, least] = [i, cost];
  }
  return best;
}
