// A table that is sorted by its headings, and whose columns may be chosen by group.

import { alike, el, say, scroller } from "./dom.js";
import { details, keepNames, keepSort, keptNames, keptSort } from "./kept.js";
import { put, read } from "./state.js";

const compare = new Intl.Collator(undefined, { numeric: true }).compare;

/**
 * columns: [{ key: its name in the address (else its title), title, of(row) -> what to sort by, show?(row) -> node or text,
 * text?: left-aligned, plain?: a picture without a title, not sorted, group?: what stands above it and its neighbours }].
 * name: of the table in the address, which keeps its order. mark(row): class of a row. most: rows shown before "all" is asked for.
 * choice: columns may be chosen; the first one always stands.
 */
export function sortable(
  caption,
  columns,
  rows,
  { name = null, sort = null, descending = false, most = 40, mark = () => null, choice = false } = {},
) {
  columns = columns.map(column => ({ key: column.title, write: column.show ?? written(column, rows), ...column }));
  const sorted = columns.filter(column => !column.plain);
  let order = keptSort(name, keysOf(sorted), { key: sort, descending }),
    shown = choice ? kept(name, columns) : columns;
  if (name && read()[`${name}.all`]) most = Infinity;
  const head = el("thead"),
    body = el("tbody"),
    more = el("button", { type: "button", class: "more", onclick: showAll });

  function showAll() {
    most = Infinity;
    if (name) put({ [`${name}.all`]: 1 }, { replace: true });
    draw();
  }

  function by(column) {
    order = { key: column.key, descending: order.key === column.key ? !order.descending : !column.text };
    keepSort(name, order.key, order.descending);
    draw();
    head.querySelector(`[data-key="${CSS.escape(column.key)}"]`).focus();
    say(`sorted by ${full(column)}, ${order.descending ? "descending" : "ascending"}`);
  }

  function draw() {
    const column = columns.find(each => each.key === order.key),
      ordered = column ? [...rows].sort((a, b) => compared(column.of(a), column.of(b), order.descending)) : rows;
    head.replaceChildren(...headings(shown, order, by));
    body.replaceChildren(...ordered.slice(0, most).map(row => line(row, shown, mark)));
    more.hidden = rows.length <= most;
    more.textContent = `Show all ${rows.length.toLocaleString("en")}`;
  }

  const choose = chosen => {
    shown = chosen;
    draw();
  };
  draw();
  return el(
    "div",
    {},
    el("p", { class: "caption" }, caption),
    choice ? chooser(name, columns, shown, choose) : null,
    scroller(caption, el("table", { "aria-label": caption }, head, body)),
    more,
  );
}

const keysOf = columns => columns.map(column => column.key);

/** A column's title as it reads without the group above it. */
const full = ({ group, title }) => (group && group !== title ? `${group}, ${title}` : title);

function compared(a, b, descending) {
  const [x, y] = [a ?? null, b ?? null];
  if (x === null || y === null) return (x === null) - (y === null); // what is missing comes last, either way
  return (typeof x === "number" && typeof y === "number" ? x - y : compare(x, y)) * (descending ? -1 : 1);
}

/** One line of headings, or two where columns have groups. */
function headings(columns, order, by) {
  const titles = columns.map(column => heading(column, order, by));
  if (!columns.some(column => column.group)) return [el("tr", {}, titles)];
  const groups = [];
  for (const { group = "" } of columns) {
    if (groups.at(-1)?.group === group) groups.at(-1).n++;
    else groups.push({ group, n: 1 });
  }
  const above = groups.map(({ group, n }) =>
    group ? el("th", { scope: "colgroup", colspan: n, class: "group" }, el("span", {}, group)) : el("td", { colspan: n }),
  );
  return [el("tr", {}, above), el("tr", {}, titles)];
}

function heading(column, order, by) {
  if (column.plain) return el("td"); // a picture of its neighbours' numbers
  const sort = order.descending ? "descending" : "ascending",
    press = el("button", { type: "button", "data-key": column.key, onclick: () => by(column) }, column.title);
  return el(
    "th",
    { scope: "col", class: column.text ? "text" : null, "aria-sort": column.key === order.key ? sort : null },
    press,
  );
}

function line(row, columns, mark) {
  const cell = (column, k) =>
    el(k ? "td" : "th", { scope: k ? null : "row", class: column.text ? "text" : null }, column.write(row));
  return el("tr", { class: mark(row) }, columns.map(cell));
}

/** A column's values as text, numbers with as many decimals each. */
function written({ of }, rows) {
  if (!of) return () => null;
  const write = alike(rows.map(of));
  return row => write(of(row));
}

// Which columns are shown: the first, and those whose names the address lists; all where it lists none.

function kept(name, columns) {
  const names = keptNames(`${name}.columns`, keysOf(columns));
  return names ? columns.filter((column, k) => !k || names.includes(column.key)) : columns;
}

/** Boxes to choose columns by, in their groups, each of which has a box for all. */
function chooser(name, columns, shown, choose) {
  const able = columns.slice(1),
    byGroup = new Map();
  for (const column of able) byGroup.set(column.group ?? "", [...(byGroup.get(column.group ?? "") ?? []), column]);
  const checked = new Set(keysOf(shown)),
    summary = el("span"),
    boxes = new Map();

  function change(some, on) {
    for (const { key } of some) {
      if (on) checked.add(key);
      else checked.delete(key);
    }
    const chosen = columns.filter((column, k) => !k || checked.has(column.key));
    keepNames(`${name}.columns`, chosen.length === columns.length ? null : keysOf(chosen));
    tell();
    choose(chosen);
  }

  function tell() {
    const n = able.filter(column => checked.has(column.key)).length;
    summary.textContent = n === able.length ? "Columns" : `Columns (${n} of ${able.length})`;
    for (const [some, box] of boxes) {
      const on = some.filter(column => checked.has(column.key)).length;
      box.checked = on === some.length;
      box.indeterminate = on > 0 && on < some.length;
    }
  }

  const box = (some, title, className = null) => {
    const made = el("input", { type: "checkbox", onchange: event => change(some, event.target.checked) });
    boxes.set(some, made);
    return el("label", { class: className }, made, ` ${title}`);
  };
  const groups = [...byGroup].map(([group, some]) =>
    el(
      "fieldset",
      {},
      el("legend", {}, some.length > 1 ? box(some, group || "Columns", "all") : group || "Columns"),
      some.map(column => box([column], column.title || "Chart")),
    ),
  );
  const made = details(`${name}.columns`, summary, el("div", { class: "chooser" }, groups));
  tell();
  return made;
}
