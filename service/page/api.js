// Questions to the service: JSON and tables, the server's own words where it refuses.

const KEPT_MS = 60_000,
  MOST_KEPT = 40; // going back must not ask again; a store being built must not look frozen
const AT_ONCE = 6; // as many connections as a browser has; the server lets that many wait for what it computes
const MOST_TRIES = 8; // where others did
const kept = new Map(),
  running = new Set(),
  states = new Map(); // by the addresses of what is served

export class ApiError extends Error {
  constructor(status, { kind = "internal", message = `the server answered ${status}`, hint = "" } = {}) {
    super(message);
    Object.assign(this, { status, kind, hint });
  }
}

/** An address of the service, which begins with /, from where the page is: behind a proxy that may be below some prefix. */
export const here = address => address.replace(/^\//, "");

/** What is served: { stores, sweeps, failing }. Their answers are then asked for as those of their present states. */
export async function served(signal) {
  const found = await get("/v1/stores", signal);
  for (const each of [...found.stores, ...found.sweeps]) states.set(here(each.url), each.state);
  return found;
}

/** An address that names the state of what it is about, so that the browser may keep the answer. */
export function ofState(url) {
  const about = here(url),
    [, state] = [...states].find(([start]) => about === start || about.startsWith(`${start}/`)) ?? [];
  return withQuery(about, { of: state });
}

/** Parsed JSON of an address, asked for once however often it is wanted; ApiError with the server's message, hint and kind. */
export function get(url, signal) {
  const found = kept.get(url);
  if (found && performance.now() - found.at < KEPT_MS && !found.signal?.aborted) return found.answer;
  const answer = ask(url, signal),
    entry = { answer, signal, at: performance.now() };
  answer.then(
    () => (entry.signal = null), // whole: it no longer depends on who asked
    () => kept.get(url) === entry && kept.delete(url),
  );
  kept.delete(url);
  kept.set(url, entry);
  if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
  return answer;
}

/** Ask anew for what was answered before. */
export const forget = () => kept.clear();

/** A question asked before its answer is needed: where it fails, that is told then. */
export function early(answer) {
  answer.catch(() => {});
  return answer;
}

async function ask(url, signal, tries = MOST_TRIES) {
  const answer = await inTurn(() => reach(url, signal));
  if (answer.status === 503 && answer.headers.has("Retry-After") && tries > 1) {
    await new Promise(done => setTimeout(done, 1000 * Math.min(5, Number(answer.headers.get("Retry-After")) || 1)));
    return ask(url, signal, tries - 1);
  }
  if (answer.ok) return answer.json();
  const body = await answer.json().catch(() => ({})),
    hint = answer.status === 401 ? { hint: "Has the server been started anew? Reload to give it its new token." } : {};
  throw new ApiError(answer.status, { ...body.error, ...hint });
}

/** Run when fewer than AT_ONCE others run. */
async function inTurn(question) {
  while (running.size >= AT_ONCE) await Promise.race(running);
  const asked = question(),
    over = asked.catch(() => {}).then(() => running.delete(over));
  running.add(over);
  return asked;
}

async function reach(url, signal) {
  try {
    return await fetch(ofState(url), { signal, credentials: "same-origin", headers: { Accept: "application/json" } });
  } catch (err) {
    if (err.name === "AbortError") throw err;
    throw new ApiError(0, {
      kind: "unreachable",
      message: "the server does not answer",
      hint: "Is it still running? Then reload.",
    });
  }
}

/** A whole table, all its pages, by columns: { names, n, column(name), rows() }. */
export async function table(url, signal) {
  const parts = [];
  for (let next = withQuery(url, { limit: 100_000 }); next; next = parts.at(-1).next) parts.push(await get(next, signal));
  return columnar(
    parts[0].columns,
    parts.flatMap(part => part.rows),
  );
}

/** Rows as the server sends them, by columns. */
export function columnar(names, rows) {
  const at = new Map(names.map((name, i) => [name, i])),
    made = new Map();
  const column = name => {
    if (!made.has(name)) made.set(name, at.has(name) ? rows.map(row => row[at.get(name)]) : null);
    return made.get(name);
  };
  const named = values => Object.fromEntries(names.map((name, k) => [name, values[k]]));
  return { names, n: rows.length, column, rows: () => rows.map(named) };
}

/** url with these query parameters; those that are null, undefined or "" are left out. */
export function withQuery(url, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const query = new URLSearchParams(given.map(([key, value]) => [key, String(value)])).toString();
  return query ? `${url}${url.includes("?") ? "&" : "?"}${query}` : url;
}

/** Where everything about a photograph lies, from where the page is. */
export const imageUrl = (store, id, rest = "") => here(`${store.url}/images/${encodeURIComponent(id)}${rest}`);
