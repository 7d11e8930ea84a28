// Values on a photograph's grid of patches: as colours, a pixel a patch, and a frame around one of them.

import { viridis } from "./colours.js";

/** Colour a canvas by { rows, columns, values }; what is null stays clear. */
export function drawHeat(canvas, { rows, columns, values }, [low, high]) {
  [canvas.width, canvas.height] = [columns, rows];
  const ctx = canvas.getContext("2d"),
    image = ctx.createImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer),
    colours = viridis(true);
  values.forEach((value, i) => {
    if (value !== null) pixels[i] = colours[Math.min(255, Math.max(0, Math.round((255 * (value - low)) / (high - low || 1))))];
  });
  ctx.putImageData(image, 0, 0);
}

/** Percentiles 1 and 99: a few outlying patches (ViTs have them) must not take the whole scale. */
export function ends(values) {
  const sorted = Float64Array.from(values.filter(value => value !== null)).sort();
  return [sorted[Math.floor(0.01 * (sorted.length - 1))] ?? 0, sorted[Math.ceil(0.99 * (sorted.length - 1))] ?? 1];
}

/** Lay a frame around a patch. */
export function placeCell(cell, [row, column], rows, columns) {
  const style = { left: column / columns, top: row / rows, width: 1 / columns, height: 1 / rows };
  for (const [name, share] of Object.entries(style)) cell.style[name] = `${100 * share}%`;
}

/** "3,14" as [3, 14] if the grid has such a patch, else null. */
export function patchOf(text, rows, columns) {
  const [, row, column] = (/^(\d+),(\d+)$/.exec(text ?? "") ?? []).map(Number);
  return row < rows && column < columns ? [row, column] : null;
}
