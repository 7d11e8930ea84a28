// What goes on by itself, a sweep or a build: asked for again while somebody looks at it, and told where it changed.

import { here } from "./api.js";
import { el } from "./dom.js";

const FAST_MS = 4000, // where it runs
  SLOW_MS = 20_000; // where it has stopped, or the server does not answer

/**
 * Ask an address again and again until the signal. tell(found, served_s): it answers something else than before; served_s is the
 * server's time, in seconds since 1970. It gives whether it runs; null ends the asking. lost(): the server does not answer.
 */
export async function watch(url, signal, tell, lost = () => {}) {
  let etag = null,
    runs = true;
  while (!signal.aborted && runs !== null) {
    try {
      const answer = await ask(url, signal);
      if (answer.ok && answer.headers.get("ETag") !== etag) {
        etag = answer.headers.get("ETag");
        runs = tell(await answer.json(), Date.parse(answer.headers.get("Date")) / 1000);
      }
      if (answer.status === 401 || answer.status === 404) return lost();
    } catch (err) {
      if (signal.aborted) return undefined;
      lost();
      runs = false;
    }
    if (runs !== null) await looked(runs ? FAST_MS : SLOW_MS, signal);
  }
  return undefined;
}

/** A browser that has the answer asks only whether it is still the same. */
const ask = (url, signal) =>
  fetch(here(url), { signal, cache: "no-cache", credentials: "same-origin", headers: { Accept: "application/json" } });

/** Some time later, and not before the page is in sight. */
async function looked(ms, signal) {
  await new Promise(done => {
    setTimeout(done, ms);
    signal.addEventListener("abort", done, { once: true });
  });
  while (document.hidden && !signal.aborted)
    await new Promise(done => document.addEventListener("visibilitychange", done, { once: true }));
}

/** A bar of how much is done, for eyes; the words beside it are for all. */
export const bar = (done, of, label) => el("progress", { value: done, max: Math.max(of, 1), "aria-label": label });

const UNITS = [
  [86_400, "day"],
  [3600, "hour"],
  [60, "minute"],
];

/** "12 minutes ago" */
export function ago(seconds) {
  const [unit, name] = UNITS.find(([each]) => seconds >= each) ?? [];
  if (!unit) return "less than a minute ago";
  const n = Math.floor(seconds / unit);
  return `${n} ${name}${n === 1 ? "" : "s"} ago`;
}
