// The address is the state: what is shown stands in the query, so that a bookmark shows it again.

const follow = new Set(),
  MOST_TOLD = 8; // names in an error

/** What stays with a reader from page to page: where they look, and which photographs they mean. A dot ends a beginning. */
export const AROUND = ["store", "sweep", "run", "view", "target", "fold", "site", "from", "to", "sign", "off", "lasso", "a", "b", "in."];
const stays = (key, keep) => keep.some(each => key === each || (each.endsWith(".") && key.startsWith(each)));

/** The state as an object of strings. */
export function read() {
  const { state, ...others } = Object.fromEntries(new URLSearchParams(location.search));
  return state ? { "in.State": state, ...others } : others; // a bookmark of before
}

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

/** The address of a state changed by `changes`; null takes a key out. Keys of other pages stay only if `keep` has them. */
export function href(changes, keep = null) {
  const was = read(),
    start = Object.fromEntries(Object.entries(was).filter(([key]) => !keep || stays(key, keep)));
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
  if (!replace) remember();
  history[replace ? "replaceState" : "pushState"](history.state, "", url);
  dispatchEvent(new Event("noted"));
}

/** How far down one is goes with the entry of the history, for who comes back to it. */
const remember = () => history.replaceState({ y: Math.round(scrollY) }, "");

/** Go to another address of the page, and show it. stay: the focus is where it should be. */
export function go(url, { stay = false } = {}) {
  const to = withWayBack(url);
  remember();
  history.pushState(null, "", to);
  follow.forEach(each => each({ stay }));
}

/** Show the present address anew: something of it is another now. */
export const again = () => follow.forEach(each => each({ stay: true }));

// From a list to a photograph and on to the next: `order` is the list's, or `among` has its ids; `back` is what the list's page
// was, but for AROUND.

const MOST_AMONG = 40; // ids that an address holds

/** These ids as the list that the next photograph is taken from. */
export const listing = ids => ids.slice(0, MOST_AMONG).map(encodeURIComponent).join(",");

const OPENED = ["photograph", "prediction"]; // pages of one picture of a list
const own = state => Object.entries(state).filter(([key]) => !stays(key, AROUND) && key !== "at");

/** The present page as a photograph's way back. */
const wayBack = () => {
  const state = read();
  return new URLSearchParams([["page", state.page ?? "overview"], ...own(state).filter(([key]) => key !== "page")]).toString();
};

/** What is shown may have changed since a link to a photograph was made. */
function withWayBack(url) {
  const query = new URLSearchParams(url.split("?")[1]);
  if (!OPENED.includes(query.get("page")) || OPENED.includes(read().page) || !query.has("back")) return url;
  query.set("back", wayBack());
  return `./?${query}`;
}

/** Address of a photograph's page, from wherever one is: from a photograph the list stays. */
export function photographHref(id, changes = {}) {
  const { page, order, among, back } = read(),
    list = OPENED.includes(page) ? { order, among, back } : { back: wayBack() };
  return href({ page: "photograph", image: id, ...list, ...changes }, AROUND);
}

/** { page, href } of the list that a photograph was opened from, at this one; null where it was not opened from any. */
export function listOf({ image, back }, at) {
  if (!back) return null;
  const was = Object.fromEntries(new URLSearchParams(back)),
    n = at >= (was.n ?? 0) && at !== null ? at + 1 : was.n;
  return { page: was.page, href: href({ ...was, n, at: image }, AROUND) };
}

/** Call `show` whenever another state is to be shown: links within the page, back and forward. */
export function onChange(show) {
  follow.add(show);
  history.scrollRestoration = "manual"; // the browser's own would scroll before anything is drawn
  addEventListener("pagehide", remember);
  addEventListener("popstate", () => show({}));
  document.addEventListener("click", event => {
    const link = event.target.closest?.("a[href^='./?'], a[href='./']");
    if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey)
      return;
    event.preventDefault();
    go(link.getAttribute("href"), { stay: link.dataset.stay });
  });
}
