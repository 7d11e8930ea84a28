// Which view is shown, of which store and sweep; everything else is the views' own business.

import { served } from "./api.js";
import { el, problem, say, select } from "./dom.js";
import { FilterBar } from "./filter.js";
import { AROUND, given, go, href, onChange, read, refused } from "./state.js";
import * as compare from "./views/compare.js";
import * as map from "./views/map.js";
import * as overview from "./views/overview.js";
import * as photograph from "./views/photograph.js";
import * as photographs from "./views/photographs.js";
import * as prediction from "./views/prediction.js";
import * as predictions from "./views/predictions.js";
import * as sweeps from "./views/sweeps.js";

const VIEWS = { overview, map, photographs, photograph, sweeps, compare, predictions, prediction },
  NAMES = {
    overview: "Overview",
    map: "Map",
    photographs: "Photographs",
    sweeps: "Sweeps",
    compare: "Compare",
    predictions: "Predictions",
  },
  WITHIN = { photograph: "photographs", prediction: "predictions" }, // pages that no link of the navigation opens
  WITHOUT_STORE = ["predictions", "prediction"];
const NO_STORE = ["no store is served", "Start the service with a STORE to see one here."],
  NO_PREDICTIONS = ["no predictions are served", "Start the service with --predictions FILE to see some here."];
const GROWS_MS = 3000; // what loads by itself is there by then
const main = document.getElementById("main"),
  filter = new FilterBar();
let running = new AbortController(),
  offered = Object.keys(NAMES).filter(name => name !== "predictions"), // pages of what is served
  first = true;

async function show({ stay = false } = {}) {
  running.abort();
  running = new AbortController();
  const { signal } = running,
    y = stay ? scrollY : (history.state?.y ?? 0),
    state = read(),
    page = state.page || (offered.includes("overview") ? "overview" : offered[0]);
  navigation(page);
  main.setAttribute("aria-busy", "true"); // what stands there is of before
  try {
    given(state, "page", Object.keys(VIEWS));
    const { stores, sweeps: all, predictions, failing } = await served(signal);
    if (!stores.length && failing.length) throw refused(failing[0].message, "");
    if (offer(stores, predictions) && !state.page) return show({ stay });
    navigation(page);
    if (!offered.includes(WITHIN[page] ?? page)) throw refused(...(WITHOUT_STORE.includes(page) ? NO_PREDICTIONS : NO_STORE));
    const store = chosen(stores, state, "store"),
      sweep = chosen(all, state, "sweep");
    chooser(stores, store);
    filter.show({ store: WITHOUT_STORE.includes(page) ? null : store, sweep, signal });
    const body = await VIEWS[page].show({ state, signal, store, sweep, sweeps: all, failing });
    if (signal.aborted) return;
    main.replaceChildren(el("h1", { tabindex: -1 }, body.title), ...body.content.flat().filter(Boolean));
    document.title = `${body.title} – biomass`;
  } catch (err) {
    if (err.name === "AbortError" || signal.aborted) return;
    main.replaceChildren(el("h1", { tabindex: -1 }, NAMES[WITHIN[page] ?? page] ?? "Not found"), problem(err));
    document.title = "Not found – biomass";
    if (!err.kind) console.error(err);
  }
  main.removeAttribute("aria-busy");
  scrollBack(y, signal);
  if (!first) arrive(stay, signal);
  first = false;
}

/**
 * Be as far down as when this was left, at the photograph one comes back from, or at the top, while parts that load by themselves
 * move it; a person's own hand wins.
 */
function scrollBack(y, signal) {
  const isBack = !y && "at" in read();
  const there = () => {
    if (!isBack) return scrollTo(0, y);
    const card = main.querySelector(".photo[aria-current]");
    card?.scrollIntoView({ block: "center" });
    card?.focus({ preventScroll: true });
  };
  scrollTo(0, y);
  if (!y && !isBack) return;
  const grown = new ResizeObserver(there),
    stop = () => grown.disconnect();
  grown.observe(main);
  signal.addEventListener("abort", stop);
  ["wheel", "pointerdown", "keydown"].forEach(kind => addEventListener(kind, stop, { once: true, signal }));
  whenGrown(stop);
}

/** Call once nothing loads any more, and some time has passed. */
function whenGrown(stop) {
  setTimeout(() => (main.querySelector("[aria-busy]") ? whenGrown(stop) : stop()), GROWS_MS);
}

/** As after loading a page: said, and read on from its heading, or from what led here, which may load by itself. */
function arrive(stay, signal) {
  say(document.title);
  if (stay === true) return; // the focus is in the filter's bar
  main.querySelector("h1").focus({ preventScroll: true });
  if (!stay) return;
  const seek = () => {
    const found = main.querySelector(`[data-stay="${CSS.escape(stay)}"]`);
    found?.focus({ preventScroll: true });
    if (found) stop();
  };
  const grown = new MutationObserver(seek),
    stop = () => grown.disconnect();
  grown.observe(main, { childList: true, subtree: true });
  signal.addEventListener("abort", stop);
  whenGrown(stop);
  seek();
}

/** The one that the address names, or the first where it names none; null where none is served. */
function chosen(all, state, what) {
  const names = all.map(each => each.name),
    name = given(state, what, names) ?? names[0];
  return all.find(each => each.name === name) ?? null;
}

/** Note which pages there are; whether these are others than before. */
function offer(stores, predictions) {
  const before = offered.join();
  offered = Object.keys(NAMES).filter(name => (name === "predictions" ? predictions : stores.length));
  return offered.join() !== before;
}

function navigation(page) {
  const links = offered.map(key =>
    el(
      "a",
      {
        href: href({ page: key === "overview" ? null : key }, AROUND),
        "aria-current": key === page ? "page" : key === WITHIN[page] ? "true" : null,
      },
      NAMES[key],
    ),
  );
  const nav = document.querySelector("header nav");
  nav.replaceChildren(...links);
  const current = links.find(link => link.hasAttribute("aria-current")); // in sight, where the window is narrow
  if (current) nav.scrollLeft = current.offsetLeft + current.offsetWidth - nav.offsetLeft - nav.clientWidth;
}

function chooser(stores, store) {
  const place = document.querySelector("header .chosen");
  if (stores.length < 2) {
    place.replaceChildren(el("span", { class: "muted" }, store?.name ?? ""));
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

main.before(filter.root);
onChange(show);
show();
