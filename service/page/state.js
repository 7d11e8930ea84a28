// The address is the state: what is shown stands in the query, so that a bookmark shows it again.

const follow = new Set(),
  MOST_TOLD = 8; // names in an error

/** The state as an object of strings. */
export const read = () => Object.fromEntries(new URLSearchParams(location.search));

/** An error that is told, as those of the server are. without: key of the state that one may leave out. */
export const refused = (message, hint = "", without = null) =>
  Object.assign(new Error(message), { kind: "not-found", hint, without });

/** What the address gives for a key, which is one of `known`; undefined where it gives nothing, an error where it gives another. */
export function given(state, key, known) {
  const value = state[key];
  if (!value || known.includes(value)) return value || undefined;
  const some = known.slice(0, MOST_TOLD).join(", "),
    others = known.length > MOST_TOLD ? ", …" : "";
  throw refused(`there is no ${key} ${value} here`, some && `There is ${some}${others}.`, key);
}

/** The address of a state changed by `changes`; null takes a key out. Keys of other pages stay only if named in `keep`. */
export function href(changes, keep = null) {
  const was = read(),
    start = keep ? Object.fromEntries(keep.filter(key => key in was).map(key => [key, was[key]])) : was;
  const all = Object.entries({ ...start, ...changes }).filter(
    ([, value]) => value !== null && value !== undefined && value !== "",
  );
  const query = new URLSearchParams(all.map(([key, value]) => [key, String(value)]));
  return all.length ? `./?${query}` : "./"; // relative: the page may lie below a proxy's prefix
}

/** Note what a view already shows: a new entry of the history, or in place of the present one (sliders, zooming). */
export function put(changes, { replace = false } = {}) {
  const url = href(changes);
  if (new URL(url, location).href === location.href) return;
  remember();
  history[replace ? "replaceState" : "pushState"](history.state, "", url);
}

/** How far down one is goes with the entry of the history, for who comes back to it. */
const remember = () => history.replaceState({ y: Math.round(scrollY) }, "");

/** Go to another address of the page, and show it. */
export function go(url) {
  remember();
  history.pushState(null, "", url);
  follow.forEach(each => each());
}

/** Address of a photograph's page, from wherever one is. */
export const photographHref = (id, changes = {}) =>
  href({ page: "photograph", image: id, ...changes }, ["store", "sweep", "view"]);

/** Call `show` whenever another state is to be shown: links within the page, back and forward. */
export function onChange(show) {
  follow.add(show);
  history.scrollRestoration = "manual"; // the browser's own would scroll before anything is drawn
  addEventListener("pagehide", remember);
  addEventListener("popstate", show);
  document.addEventListener("click", event => {
    const link = event.target.closest?.("a[href^='./?'], a[href='./']");
    if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey)
      return;
    event.preventDefault();
    go(link.getAttribute("href"));
  });
}
