// A photograph in small: the card under the mouse, and a figure that opens its page.

import { imageUrl } from "./api.js";
import { el } from "./dom.js";
import { photographHref } from "./state.js";

const WAIT_MS = 40; // a mouse that sweeps over thousands of points must not ask for thousands of photographs

export function thumb(store, id, alt = "") {
  return el("img", {
    src: imageUrl(store, id, "/thumb.jpg"),
    alt,
    loading: "lazy",
    decoding: "async",
    onerror: event => event.target.classList.add("absent"),
  });
}

/** What hovering shows: the photograph, its id, and lines of text. */
export function hoverCard(store, id, texts) {
  const image = el("img", { alt: "", decoding: "async", onerror: event => event.target.remove() });
  setTimeout(() => {
    if (image.isConnected) image.src = imageUrl(store, id, "/thumb.jpg");
  }, WAIT_MS);
  return el(
    "div",
    { class: "card" },
    image,
    el("strong", {}, id),
    texts.map(text => el("span", {}, text)),
  );
}

/** A photograph as a link to its page, with a caption; `inside` lies over the picture. */
export function photographLink(store, id, texts, { changes = {}, inside = null } = {}) {
  return el(
    "a",
    { class: "photo", href: photographHref(id, changes) },
    el("span", { class: "picture" }, thumb(store, id), inside),
    el("span", { class: "id" }, id),
    texts.map(text => el("span", { class: "small" }, text)),
  );
}
