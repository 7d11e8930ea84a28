// Which view is shown, of which store and sweep; everything else is the views' own business.

import { served } from "./api.js";
import { el, problem, say, select } from "./dom.js";
import { given, go, href, onChange, read, refused } from "./state.js";
import * as map from "./views/map.js";
import * as overview from "./views/overview.js";
import * as photograph from "./views/photograph.js";
import * as sweeps from "./views/sweeps.js";

const VIEWS = { overview, map, photograph, sweeps },
  NAMES = { overview: "Overview", map: "Map", photograph: "Photograph", sweeps: "Sweeps" };
const GROWS_MS = 3000; // what loads by itself is there by then
const main = document.getElementById("main");
let running = new AbortController(),
  first = true;

async function show() {
  running.abort();
  running = new AbortController();
  const { signal } = running,
    y = history.state?.y ?? 0,
    state = read(),
    page = state.page || "overview";
  navigation(page);
  main.setAttribute("aria-busy", "true"); // what stands there is of before
  try {
    given(state, "page", Object.keys(VIEWS));
    const { stores, sweeps: all, failing } = await served(signal);
    if (!stores.length && failing.length) throw refused(failing[0].message, "");
    const store = chosen(stores, state, "store"),
      sweep = chosen(all, state, "sweep");
    chooser(stores, store);
    const body = await VIEWS[page].show({ state, signal, store, sweep, sweeps: all, failing });
    if (signal.aborted) return;
    main.replaceChildren(el("h1", { tabindex: -1 }, body.title), ...body.content.flat().filter(Boolean));
    document.title = `${body.title} – biomass`;
  } catch (err) {
    if (err.name === "AbortError" || signal.aborted) return;
    main.replaceChildren(el("h1", { tabindex: -1 }, NAMES[page] ?? "Not found"), problem(err));
    document.title = "Not found – biomass";
    if (!err.kind) console.error(err);
  }
  main.removeAttribute("aria-busy");
  scrollBack(y, signal);
  if (!first) arrive();
  first = false;
}

/** Be as far down as when this was left, or at the top, while parts that load by themselves move it; a person's own hand wins. */
function scrollBack(y, signal) {
  scrollTo(0, y);
  if (!y) return;
  const grown = new ResizeObserver(() => scrollTo(0, y)),
    stop = () => grown.disconnect();
  grown.observe(main);
  signal.addEventListener("abort", stop);
  ["wheel", "pointerdown", "keydown"].forEach(kind => addEventListener(kind, stop, { once: true, signal }));
  setTimeout(stop, GROWS_MS);
}

/** As after loading a page: said, and read on from its heading. */
function arrive() {
  main.querySelector("h1").focus({ preventScroll: true });
  say(document.title);
}

/** The one that the address names, or the first where it names none; null where none is served. */
function chosen(all, state, what) {
  const names = all.map(each => each.name),
    name = given(state, what, names) ?? names[0];
  return all.find(each => each.name === name) ?? null;
}

function navigation(page) {
  const links = Object.entries(NAMES).map(([key, text]) =>
    el(
      "a",
      {
        href: href({ page: key === "overview" ? null : key }, ["store", "sweep", "image", "run", "view"]),
        "aria-current": key === page ? "page" : null,
      },
      text,
    ),
  );
  document.querySelector("header nav").replaceChildren(...links);
}

function chooser(stores, store) {
  const place = document.querySelector("header .chosen");
  if (stores.length < 2) {
    place.replaceChildren(el("span", { class: "muted" }, store.name));
    return;
  }
  place.replaceChildren(
    select(
      "Store",
      stores.map(each => [each.name, each.name]),
      store.name,
      name => go(href({ store: name }, ["page", "sweep"])),
    ),
  );
}

onChange(show);
show();
