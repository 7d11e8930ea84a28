// One new photograph: what is predicted of it, how sure that is, and the maps of --explain.

import { get, withQuery } from "../api.js";
import { span, track } from "../bars.js";
import { amount, axisOf, el, plain, section } from "../dom.js";
import { href, listOf, refused } from "../state.js";
import { sortable } from "../table.js";
import { endsOf, inOrder, inWords } from "./predictions.js";

export async function show({ state, signal }) {
  const about = await get("/v1/predictions", signal),
    id = state.image;
  if (!id) throw refused("no photograph is named", "Open one from Predictions.");
  const at = `v1/predictions/images/${encodeURIComponent(id)}`,
    { order, target } = state,
    found = await get(withQuery(`/${at}`, { order, target }), signal);
  return {
    title: id,
    content: [
      around(found, state),
      el(
        "div",
        { class: "predicted" },
        el(
          "div",
          {},
          about.has_photographs ? shown(`${at}/photograph.jpg`, `Photograph ${id}`, NO_PHOTOGRAPH) : null,
          section("Predicted", table(inOrder(about), found.row)),
        ),
        about.has_explained
          ? section("Maps of the prediction", shown(`${at}/explained.jpg`, `Maps of ${id}, as predict --explain drew them`, NO_MAPS))
          : null,
      ),
      el("p", { class: "twins" }, "This prediction: ", el("a", { href: at }, "JSON")),
    ],
  };
}

const NO_PHOTOGRAPH = "The folder of --data has no photograph of it.";
const NO_MAPS = "The folder of --explain has no picture of it.";

function shown(src, alt, none) {
  const absent = event => event.target.replaceWith(el("p", { class: "muted" }, none));
  return el("img", { class: "alone", src, alt, onerror: absent });
}

function around({ previous, next, at, n }, state) {
  const list = listOf(state, at);
  const to = (id, text, stay) =>
    id
      ? el("a", { href: href({ image: id }), "data-stay": stay }, text)
      : el("span", { class: "muted", "data-stay": stay, tabindex: -1 }, text);
  return el(
    "nav",
    { class: "around", "aria-label": "Predictions before and after" },
    el("a", { href: list?.href ?? href({ page: "predictions", image: null }) }, "Back to the predictions"),
    to(previous, "← Previous", "previous"),
    to(next, "Next →", "next"),
    el("span", {}, `${(at + 1).toLocaleString("en")} of ${n.toLocaleString("en")}`),
  );
}

/** A row a target; each has a scale of its own unit, and grams share one. */
function table(targets, row) {
  const numbers = targets.filter(target => !target.is_class),
    unit = target => axisOf(target.name) || target.name;
  const rangeOf = target => {
    const alike = numbers.filter(other => unit(other) === unit(target));
    return span(
      alike.flatMap(other => [row[other.name], ...endsOf(other)(row)]),
      true,
    );
  };
  const chart = target => {
    if (target.is_class) return null;
    const [low, high] = endsOf(target)(row);
    return track(rangeOf(target), { value: row[target.name], low, high });
  };
  const spread = target => (target.sd ? amount(target.name, row[`${target.name}_sd`]) : "");
  const hasSpread = numbers.some(target => target.sd),
    hasIntervals = numbers.some(target => target.low && target.high);
  const spreads = { key: "sd", title: "± sd", of: target => row[`${target.name}_sd`], show: spread },
    told = `Predictions${hasIntervals ? " with their intervals" : ""}${hasSpread ? "; sd is the spread over heads and views" : ""}`;
  const columns = [
    { key: "name", title: "Target", text: true, of: target => plain(target.name) },
    { key: "predicted", title: "Predicted", text: true, of: target => row[target.name], show: target => inWords(target, row) },
    { plain: true, key: "chart", title: "Chart", show: chart },
    ...(hasSpread && hasIntervals ? [spreads] : []), // without intervals it stands with what is predicted
  ];
  return sortable(told, columns, targets, { name: "targets" });
}
