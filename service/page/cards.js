// A photograph in small: the card under the mouse, and a figure that opens its page.

import { get, imageUrl, ofState } from "./api.js";
import { el } from "./dom.js";
import { listing, photographHref, read } from "./state.js";

const WAIT_MS = 40; // a mouse that sweeps over thousands of points must not ask for thousands of photographs

const AHEAD = "300px"; // of the window's edges: a browser's own lazy pictures come from some screens away
const MOST_AT_ONCE = 64; // thumbnails of a request, as the server has it
const MOST_LETTERS = 4000; // of its address, which servers and proxies cut at 8 kB
const MOST_KEPT = 2000; // some 10 kB each

const waiting = new WeakMap(), // what is to be shown: an address, or { store, id } of a thumbnail
  thumbs = new Map(); // by address, those that this page has fetched
const near = new IntersectionObserver(
  seen => {
    const wanted = [];
    for (const { target, isIntersecting } of seen) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      const what = waiting.get(target);
      if (typeof what === "string") target.src = what;
      else wanted.push([target, what]);
    }
    showThumbs(wanted);
  },
  { rootMargin: AHEAD },
);

/** A picture that is asked for where it comes near the window; one that is not there leaves its place empty. */
export const picture = (src, attributes = {}) => whenNear(ofState(src), attributes);

/** A thumbnail, which is asked for together with others that come near the window at the same time; store: what has `thumbs.json`. */
export const thumb = (store, id, alt = "") => whenNear({ store, id }, { alt });

function whenNear(what, attributes) {
  const image = el("img", { decoding: "async", onerror: event => leaveEmpty(event.target), ...attributes });
  waiting.set(image, what);
  near.observe(image);
  return image;
}

const leaveEmpty = image => image.classList.add("absent");

/** Show thumbnails, [image, { store, id }], by few requests: a connection with a delay of 100 ms takes as long for one as for 64. */
function showThumbs(wanted) {
  const missing = [];
  for (const each of wanted) {
    const [image, { store, id }] = each,
      there = thumbs.get(keyOf(store, id));
    if (there) image.src = there;
    else missing.push(each);
  }
  for (const some of inRequests(missing)) fetchThumbs(some);
}

/** In pieces, each of which one request may ask for. */
function inRequests(wanted) {
  const pieces = [];
  let letters = 0;
  for (const each of wanted) {
    const piece = pieces.at(-1),
      isOfStore = piece?.[0][1].store.url === each[1].store.url;
    letters += asQuery(each).length + 1;
    if (isOfStore && piece.length < (each[1].store.atOnce ?? MOST_AT_ONCE) && letters <= MOST_LETTERS) {
      piece.push(each);
    } else {
      pieces.push([each]);
      letters = asQuery(each).length;
    }
  }
  return pieces;
}

async function fetchThumbs(wanted) {
  wanted.forEach(([image]) => image.setAttribute("aria-busy", "true"));
  const { store } = wanted[0][1],
    url = `${store.url}/thumbs.json?${wanted.map(asQuery).join("&")}`;
  try {
    const found = (await get(url)).thumbs;
    wanted.forEach(([image, { id }], k) => {
      if (!found[k]) return leaveEmpty(image);
      image.src = `data:image/jpeg;base64,${found[k]}`;
      keep(keyOf(store, id), image.src);
    });
  } catch {
    wanted.forEach(([image]) => leaveEmpty(image));
  } finally {
    wanted.forEach(([image]) => image.removeAttribute("aria-busy"));
  }
}

function keep(key, thumb) {
  thumbs.set(key, thumb);
  if (thumbs.size > MOST_KEPT) thumbs.delete(thumbs.keys().next().value);
}

const asQuery = ([, { id }]) => `image=${encodeURIComponent(id)}`;
const keyOf = (store, id) => ofState(imageUrl(store, id));

/** What hovering shows: the photograph, its id, and lines of text. */
export function hoverCard(store, id, texts) {
  const image = el("img", { alt: "", decoding: "async", onerror: event => event.target.remove() });
  setTimeout(() => {
    if (image.isConnected) image.src = ofState(imageUrl(store, id, "/thumb.jpg"));
  }, WAIT_MS);
  return el(
    "div",
    { class: "card" },
    image,
    el("strong", {}, id),
    texts.map(text => el("span", {}, text)),
  );
}

const FIRST = 12,
  MORE = 48;

/** Photographs of rows ({ image_id, ... }) in their order, the first ones and a button for more; texts(row): lines below one. */
export function gallery(store, rows, texts) {
  const place = el("div", { class: "photos" }),
    more = el("button", { type: "button", class: "more", onclick: () => add(MORE) }, "Show more");
  function add(n) {
    const next = rows.slice(place.children.length, place.children.length + n);
    const among = listing(next.map(row => row.image_id));
    place.append(...next.map(row => photographLink(store, row.image_id, texts(row), { changes: { among } })));
    more.hidden = place.children.length >= rows.length;
  }
  add(FIRST);
  return el("div", {}, place, more);
}

/** A photograph as a link to its page, with a caption; `inside` lies over the picture. The one that one comes back from is marked. */
export function photographLink(store, id, texts, { changes = {}, inside = null } = {}) {
  return el(
    "a",
    { class: "photo", href: photographHref(id, changes), "aria-current": read().at === id ? "true" : null },
    el("span", { class: "picture" }, thumb(store, id), inside),
    el("span", { class: "id" }, id),
    texts.map(text => el("span", { class: "small" }, text)),
  );
}
