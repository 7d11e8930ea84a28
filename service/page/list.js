// A list of photographs in an order: as pictures that lead to their pages, some at first and more when asked for.

import { get, withQuery } from "./api.js";
import { photographLink } from "./cards.js";
import { amount, el, num, plain, signed, unitOf, withUnit } from "./dom.js";
import { filtered } from "./filter.js";
import { put, read } from "./state.js";

const MORE = 48;
const KEYS = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };

/** Two lines on how far a prediction is off, or on what is known. */
export function told(target, row) {
  if (row.predicted_word)
    return [`true ${row.true_word}, predicted ${row.predicted_word}`, `probability of the true word ${num(row.predicted, 3)}`];
  const known = Number.isFinite(row.true);
  if (!Number.isFinite(row.predicted)) return known ? [`${plain(target)} ${withUnit(target, row.true)}`] : [];
  return [
    known ? `error ${signed(target, row.error)}${unitOf(target)}` : "error not known",
    `true ${amount(target, row.true)}, predicted ${amount(target, row.predicted)}`,
  ];
}

/**
 * What passes the filter, in an order: { root, total, url }. first: photographs that are shown before "more"; the address keeps
 * how many are. target: whose errors are told.
 */
export async function photographList({ store, sweep, state, signal }, { order, target, run, first }) {
  const url = filtered(`${store.url}/photographs.json`, { state: { ...state, target, run }, sweep }, { order });
  const card = row =>
    photographLink(store, row.image_id, [...told(target, row), row.site || row.date], { changes: { order } });
  return pictureList({ url, signal, first, card });
}

/** The rows of a table as pictures, which card(row) makes: { root, total, url }. */
export async function pictureList({ url, signal, first, card }) {
  const shown = Math.max(Number(read().n) || 0, first),
    place = el("div", { class: "photos", onkeydown: event => walk(event, place) }),
    more = el("button", { type: "button", class: "more", onclick: showMore }, "Show more");
  let following = withQuery(url, { limit: shown });

  async function load() {
    const { columns, rows, next, total } = await get(following, signal),
      named = values => Object.fromEntries(values.map((value, k) => [columns[k], value]));
    place.append(...rows.map(values => card(named(values))));
    following = next && withQuery(url, { offset: place.children.length, limit: MORE });
    more.hidden = !following;
    return total;
  }

  async function showMore() {
    const last = place.lastElementChild;
    await load();
    put({ n: place.children.length }, { replace: true });
    last.nextElementSibling?.focus({ preventScroll: true });
  }

  const total = await load();
  return { root: el("div", {}, place, more), total, url };
}

/** Arrow keys go from picture to picture, up and down by rows. */
function walk(event, place) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const all = [...place.children],
    at = all.indexOf(document.activeElement),
    top = all[0]?.offsetTop,
    columns = all.filter(each => each.offsetTop === top).length,
    step = { ...KEYS, ArrowDown: columns, ArrowUp: -columns }[event.key];
  if (at < 0 || step === undefined) return;
  event.preventDefault();
  all[Math.min(Math.max(at + step, 0), all.length - 1)].focus();
}
