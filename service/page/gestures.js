// Mouse, pen and fingers on a scatter plot: hover, click, drag, lasso, wheel, pinch.

const CLICK_PX = 5,
  ROPE_PX = 6; // between two corners of a lasso

export function gestures(root, chart) {
  const fingers = new Map();
  let moved = 0,
    corner = null; // the last of a lasso, in pixels
  const at = event => {
    const box = root.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };

  root.addEventListener("pointerdown", event => {
    if (event.button || event.target.closest("a, button")) return;
    fingers.set(event.pointerId, at(event));
    moved = 0;
    if (chart.zoom) root.setPointerCapture(event.pointerId);
  });

  root.addEventListener("pointermove", event => {
    const to = at(event),
      from = fingers.get(event.pointerId);
    if (!from) {
      hover(to);
      return;
    }
    moved += Math.hypot(to[0] - from[0], to[1] - from[1]);
    if (chart.lassoing && chart.scales) {
      rope(from, to);
      return;
    }
    if (chart.zoom && chart.scales && moved > CLICK_PX) drag(event.pointerId, from, to);
    fingers.set(event.pointerId, to);
  });

  function hover(to) {
    const i = chart.under(...to);
    root.classList.toggle("on-point", i >= 0);
    chart.look(i);
  }

  function rope(from, to) {
    if (!corner) chart.rope(...(corner = from), true);
    if (Math.hypot(to[0] - corner[0], to[1] - corner[1]) < ROPE_PX) return;
    corner = to;
    chart.rope(...to, false);
  }

  function drag(id, from, to) {
    const other = [...fingers].find(([each]) => each !== id)?.[1];
    if (!other) {
      chart.move(to[0] - from[0], to[1] - from[1], 1, ...to);
      return;
    }
    const spread = point => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
    chart.move(
      (to[0] - from[0]) / 2,
      (to[1] - from[1]) / 2,
      spread(to) / spread(from),
      (to[0] + other[0]) / 2,
      (to[1] + other[1]) / 2,
    );
  }

  root.addEventListener("pointerup", event => {
    const pressed = fingers.delete(event.pointerId);
    if (corner) {
      corner = null;
      chart.onlasso(chart.lasso);
      return;
    }
    const i = chart.under(...at(event));
    if (!pressed || moved > CLICK_PX || i < 0) return;
    if (event.pointerType === "touch" && chart.at !== i)
      chart.look(i); // a finger has no hover: the first tap shows, the second opens
    else chart.open(i);
  });
  root.addEventListener("pointercancel", event => {
    fingers.delete(event.pointerId);
    corner = null;
  });
  root.addEventListener("pointerleave", event => {
    if (!fingers.has(event.pointerId) && event.pointerType !== "touch") chart.look(-1);
  });

  if (!chart.zoom) return;
  root.addEventListener(
    "wheel",
    event => {
      if (!chart.scales) return;
      event.preventDefault();
      const lines = event.deltaMode === 1 ? 16 : 1;
      chart.move(0, 0, Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0018)), ...at(event));
    },
    { passive: false },
  );
  root.addEventListener("dblclick", () => chart.reset());
}
