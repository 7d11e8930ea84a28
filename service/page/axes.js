// Round numbers along an axis, and the lines and words drawn there.

/** About `wanted` round values within [low, high]. */
export function ticks(low, high, wanted = 5) {
  const rough = (high - low) / Math.max(1, wanted);
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(each => each * power >= rough);
  const first = Math.ceil(low / step - 1e-9),
    n = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: n }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/**
 * Draw both axes of a chart: { x, y } with `label`, `format` and perhaps `ticks` and `room` (pixels from word to word), in a frame
 * { left, right, top, bottom } of CSS pixels.
 */
export function drawAxes(ctx, axes, box, frame, toX, toY, ink) {
  const [x0, x1, y0, y1] = box;
  ctx.font = "12px system-ui, sans-serif";
  ctx.lineWidth = 1;
  ctx.strokeStyle = ink.rule;
  ctx.fillStyle = ink.muted;
  ctx.textBaseline = "top";
  ctx.textAlign = "center";
  for (const value of (axes.x.ticks ?? ticks)(x0, x1, (frame.right - frame.left) / (axes.x.room ?? 40))) {
    const x = Math.round(toX(value)) + 0.5,
      text = axes.x.format(value),
      half = ctx.measureText(text).width / 2;
    line(ctx, x, frame.top, x, frame.bottom);
    ctx.fillText(text, Math.min(x, frame.right + 6 - half), frame.bottom + 6);
  }
  ctx.fillText(axes.x.label, (frame.left + frame.right) / 2, frame.bottom + 22);
  ctx.textBaseline = "middle";
  ctx.textAlign = "right";
  for (const value of ticks(y0, y1, (frame.bottom - frame.top) / 38)) {
    const y = Math.round(toY(value)) + 0.5;
    line(ctx, frame.left, y, frame.right, y);
    ctx.fillText(axes.y.format(value), frame.left - 6, y);
  }
  ctx.textAlign = "left";
  ctx.textBaseline = "top";
  ctx.fillText(axes.y.label, 4, 2);
}

function line(ctx, x0, y0, x1, y1) {
  ctx.beginPath();
  ctx.moveTo(x0, y0);
  ctx.lineTo(x1, y1);
  ctx.stroke();
}
