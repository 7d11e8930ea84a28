// A table that is sorted by its headings.

import { alike, el, say, scroller } from "./dom.js";

const compare = new Intl.Collator(undefined, { numeric: true }).compare;

/**
 * columns: [{ title, of(row) -> what to sort by, show?(row) -> node or text, text?: left-aligned, plain?: a picture without a title, not sorted }].
 * mark(row): class of a row. most: rows shown before "all" is asked for.
 */
export function sortable(caption, columns, rows, { sort = null, descending = false, most = 40, mark = () => null } = {}) {
  const writes = columns.map(column => column.show ?? written(column, rows)),
    body = el("tbody"),
    more = el("button", {
      type: "button",
      class: "more",
      onclick: () => {
        most = Infinity;
        draw();
      },
    });
  const heads = columns.map((column, k) => {
    if (column.plain) return el("td"); // a picture of its neighbours' numbers
    return el(
      "th",
      { scope: "col", class: column.text ? "text" : null },
      el("button", { type: "button", onclick: () => by(k) }, column.title),
    );
  });

  function by(k) {
    descending = sort === k ? !descending : !columns[k].text;
    sort = k;
    draw();
    say(`sorted by ${columns[k].title}, ${descending ? "descending" : "ascending"}`);
  }

  function draw() {
    const order =
      sort === null
        ? rows
        : [...rows].sort((a, b) => {
            const [x, y] = [columns[sort].of(a), columns[sort].of(b)].map(each => each ?? null);
            if (x === null || y === null) return (x === null) - (y === null); // what is missing comes last, either way
            return (typeof x === "number" && typeof y === "number" ? x - y : compare(x, y)) * (descending ? -1 : 1);
          });
    heads.forEach((head, k) =>
      k === sort ? head.setAttribute("aria-sort", descending ? "descending" : "ascending") : head.removeAttribute("aria-sort"),
    );
    body.replaceChildren(...order.slice(0, most).map(line));
    more.hidden = rows.length <= most;
    more.textContent = `Show all ${rows.length.toLocaleString("en")}`;
  }

  function line(row) {
    return el(
      "tr",
      { class: mark(row) },
      columns.map((column, k) =>
        el(k ? "td" : "th", { scope: k ? null : "row", class: column.text ? "text" : null }, writes[k](row)),
      ),
    );
  }

  draw();
  return el(
    "div",
    {},
    el("p", { class: "caption" }, caption),
    scroller(caption, el("table", { "aria-label": caption }, el("thead", {}, el("tr", {}, heads)), body)),
    more,
  );
}

/** A column's values as text, numbers with as many decimals each. */
function written({ of }, rows) {
  const write = alike(rows.map(of));
  return row => write(of(row));
}
