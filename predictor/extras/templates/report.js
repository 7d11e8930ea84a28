const body = document.querySelector("tbody"), heads = [...document.querySelectorAll("thead th")];
const say = text => document.querySelector("[role=status]").textContent = text;
const id = row => row.querySelector(".id").textContent;
const compare = new Intl.Collator(undefined, { numeric: true }).compare;

function key(row, column) {
  const cell = row.cells[column];
  return column ? cell.dataset.v : id(row);
}

function sort(column, descending) {
  const isWord = row => Number.isNaN(Number(key(row, column)));
  const byText = column === 0 || heads[column].textContent === "Note" || [...body.rows].some(isWord);
  const order = byText ? compare : (a, b) => a - b;
  const rows = [...body.rows].sort((a, b) => order(key(a, column), key(b, column)) * (descending ? -1 : 1));
  body.append(...rows);
  heads.forEach((head, i) => i === column ? head.setAttribute("aria-sort", descending ? "descending" : "ascending")
                                          : head.removeAttribute("aria-sort"));
}

heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
  const descending = head.ariaSort ? head.ariaSort === "ascending" : column > 0;
  sort(column, descending);
  say(`sorted by ${head.textContent}, ${descending ? "descending" : "ascending"}`);
}));
if (heads[2]?.textContent.startsWith("±")) heads[2].setAttribute("aria-sort", "descending");

document.querySelector("input").addEventListener("input", event => {
  const wanted = event.target.value.trim().toLowerCase();
  for (const row of body.rows) row.hidden = !id(row).toLowerCase().includes(wanted);
  say(`${[...body.rows].filter(row => !row.hidden).length} photographs`);
});

const dialog = document.querySelector("dialog"), [back, next, close] = dialog.querySelectorAll("button");
let shown = null;

function show(row) {
  if (!row) return;
  shown = row;
  const picture = dialog.querySelector("img"), of = id(row);
  picture.src = row.querySelector("a").href;
  picture.alt = `${of}: photograph, map and predictions`;
  dialog.querySelector("p").textContent = of;
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

function step(by) {
  const rows = [...body.rows].filter(row => !row.hidden);
  show(rows[rows.indexOf(shown) + by]);
}

body.addEventListener("click", event => {
  const link = event.target.closest("a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  show(link.closest("tr"));
});
back.addEventListener("click", () => step(-1));
next.addEventListener("click", () => step(1));
close.addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => shown?.querySelector("a").focus());
dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("keydown", event => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
