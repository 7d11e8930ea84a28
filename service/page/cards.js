// A photograph in small: the card under the mouse, and a figure that opens its page.

import { imageUrl, ofState } from "./api.js";
import { el } from "./dom.js";
import { listing, photographHref, read } from "./state.js";

const WAIT_MS = 40; // a mouse that sweeps over thousands of points must not ask for thousands of photographs

const AHEAD = "300px"; // of the window's edges: a browser's own lazy pictures come from some screens away
const near = new IntersectionObserver(
  seen => {
    for (const { target, isIntersecting } of seen) {
      if (!isIntersecting) continue;
      target.src = target.dataset.src;
      near.unobserve(target);
    }
  },
  { rootMargin: AHEAD },
);

/** A picture that is asked for where it comes near the window; one that is not there leaves its place empty. */
export function picture(src, attributes = {}) {
  const absent = event => event.target.classList.add("absent"),
    image = el("img", { decoding: "async", onerror: absent, "data-src": ofState(src), ...attributes });
  near.observe(image);
  return image;
}

export const thumb = (store, id, alt = "") => picture(imageUrl(store, id, "/thumb.jpg"), { alt });

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
