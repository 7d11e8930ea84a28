// What a reader opened, sorted and chose stands in the address too, under the name of the table or part: `board.sort=-score_last`.

import { el } from "./dom.js";
import { given, put, read } from "./state.js";

const listed = text => (text ? text.split(",").map(decodeURIComponent) : []);
const written = names => names.map(encodeURIComponent).join(",");

/** <details> that are open where the address says so: `open` lists the names of those. */
export function details(name, summary, ...children) {
  const made = el("details", { open: listed(read().open).includes(name) }, el("summary", {}, summary), ...children);
  made.addEventListener("toggle", () => {
    const others = listed(read().open).filter(each => each !== name);
    put({ open: written(made.open ? [...others, name] : others) }, { replace: true });
  });
  return made;
}

/** { key, descending } of a table, as the address says or as given; a minus stands before a column that is sorted downwards. */
export function keptSort(name, keys, otherwise) {
  const text = name ? read()[`${name}.sort`] : null;
  if (!text) return otherwise;
  const descending = text.startsWith("-") && !keys.includes(text),
    key = descending ? text.slice(1) : text;
  given({ [`${name}.sort`]: key }, `${name}.sort`, keys);
  return { key, descending };
}

export const keepSort = (name, key, descending) =>
  name && put({ [`${name}.sort`]: `${descending ? "-" : ""}${key}` }, { replace: true });

/** Names of a list in the address, those of `known`; null where it has none. */
export function keptNames(key, known) {
  const text = read()[key];
  if (!text) return null;
  const names = listed(text);
  names.forEach(name => given({ [key]: name }, key, known));
  return names;
}

export const keepNames = (key, names) => put({ [key]: names && written(names) }, { replace: true });
