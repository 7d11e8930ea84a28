// One photograph: what its patch tokens say, which photographs are like it, what is known and predicted of it.

import { get, imageUrl, ofState } from "../api.js";
import { span, track } from "../bars.js";
import { photographLink, picture } from "../cards.js";
import { alike, amount, el, facts, fixed, num, plain, problem, section, signed, twins, unitOf, withUnit } from "../dom.js";
import { filtered, isFiltered } from "../filter.js";
import { told } from "../list.js";
import { Stage } from "../stage.js";
import { given, go, href, listOf, put, refused } from "../state.js";
import { sortable } from "../table.js";

const OWN = ["path", "sha256", "width", "height", "status"]; // columns that a store adds to the catalog

const PAGES = { overview: "the overview", map: "the map", photographs: "the photographs", sweeps: "the run", compare: "the comparison" }; // that one comes from

export async function show({ state, signal, store, sweep, sweeps }) {
  const view = given(state, "view", store.views) ?? store.views[0],
    id = state.image ?? store.first,
    { order, among } = state,
    asked = isFiltered(state) || order || among ? filtered("", { state, sweep }, { order, among }) : "";
  if (!id) throw refused(`${store.name} has no photographs yet`);
  askForPictures(store, id, view);
  let about;
  try {
    about = await get(imageUrl(store, id, asked), signal);
  } catch (err) {
    if (!err.kind) throw err;
    return { title: id, content: [around({ at: null, n: 0, previous: null, next: null }, state), problem(err)] };
  }
  const others = el("div");
  const stage = store.has_patches ? new Stage({ store, about, state, signal, view, others }) : unlayered(store, about);
  const near = about.nearest.map(each => photographLink(store, each.image_id, [`similarity ${fixed(each.similarity, 3)}`]));
  const left = el("div", {}, around(about, state), stage.root, others);
  return {
    title: about.image_id,
    content: [
      el("div", { class: "photograph" }, left, el("div", { class: "side" }, labels(about))),
      predictions(store, about, sweeps.length > 1, { sweep: sweep?.name, run: about.row?.run }),
      store.has_patches
        ? section(
            "Views",
            views(store, about, view, name => stage.setView(name)),
            twins(imageUrl(store, about.image_id, "/views.json"), "Views"),
          )
        : null,
      section(
        "Nearest photographs",
        near.length ? el("div", { class: "photos" }, near) : el("p", { class: "muted" }, "No other photograph is sealed."),
        twins(imageUrl(store, about.image_id, "/nearest.json"), "Nearest photographs"),
      ),
      el("p", { class: "twins" }, "This photograph: ", el("a", { href: imageUrl(store, about.image_id) }, "JSON")),
    ],
  };
}

/** Both pictures come while the server still says what they show. */
function askForPictures(store, id, view) {
  const principal = `${imageUrl(store, id, "/pca.png")}?view=${encodeURIComponent(view)}`,
    urls = [imageUrl(store, id, "/photograph.jpg"), store.has_patches && ofState(principal)];
  for (const url of urls.filter(Boolean)) new Image().src = url;
}

/** The way back to the list, to the photographs before and after in it, and to any by its id. */
function around(about, state) {
  const { at, n, row } = about,
    list = listOf(state, at);
  const to = (id, text, stay) =>
    id
      ? el("a", { href: href({ image: id, patch: null }), "data-stay": stay }, text)
      : el("span", { class: "muted", "data-stay": stay, tabindex: -1 }, text);
  const find = el("input", {
    type: "search",
    name: "image",
    placeholder: "image id, or @position",
    "aria-label": "Open photograph",
    autocomplete: "off",
  });
  const open = event => {
    event.preventDefault();
    if (find.value.trim()) go(href({ image: find.value.trim(), patch: null }));
  };
  const place = !n ? "" : at === null ? `not among these ${n.toLocaleString("en")}` : `${(at + 1).toLocaleString("en")} of ${n.toLocaleString("en")}`,
    lines = row ? told(row.target, row) : [];
  return el(
    "nav",
    { class: "around", "aria-label": "Photographs before and after" },
    list ? el("a", { href: list.href }, `Back to ${PAGES[list.page] ?? "the list"}`) : null,
    to(about.previous, "← Previous", "previous"),
    to(about.next, "Next →", "next"),
    el("span", {}, place),
    el("form", { role: "search", onsubmit: open }, find, el("button", { type: "submit" }, "Open")),
    lines.length ? el("p", { class: "row" }, [whose(row), ...lines, row.site].filter(Boolean).join(" · ")) : null,
  );
}

/** Whose error a list's row tells. */
function whose({ target, run, fold }) {
  if (!run) return null;
  return `${plain(target)} by ${run}${fold && fold !== "all" ? `, fold ${fold}` : ""}`;
}

function unlayered(store, about) {
  const src = imageUrl(store, about.image_id, "/photograph.jpg"),
    told = el("figcaption", {}, "This store keeps no patch tokens.");
  const absent = event => event.target.replaceWith(el("p", { class: "muted" }, "No picture is kept either."));
  return {
    root: el("figure", {}, told, el("img", { class: "alone", src, alt: `Photograph ${about.image_id}`, onerror: absent })),
  };
}

/** Each view's principal components and norms, to choose the view by. */
function views(store, about, chosen, choose) {
  const names = [...new Set(about.views.flatMap(Object.keys))],
    writes = Object.fromEntries(names.map(name => [name, alike(about.views.map(norms => norms[name]))]));
  const buttons = about.views.map(norms => {
    const told = Object.entries(norms).filter(([name, value]) => name !== "view" && (value || !name.endsWith("non_finite")));
    const src = `${imageUrl(store, about.image_id, "/pca.png")}?view=${encodeURIComponent(norms.view)}`;
    const press = () => {
      buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(about.views[i] === norms)));
      put({ view: norms.view });
      choose(norms.view);
    };
    return el(
      "button",
      { type: "button", class: "photo", "aria-pressed": String(norms.view === chosen), onclick: press },
      el("span", { class: "picture" }, picture(src, { class: "pixels", alt: "" })),
      el("span", { class: "id" }, norms.view),
      told.map(([name, value]) => el("span", { class: "small" }, `${name.replace(/_/g, " ")} ${writes[name](value)}`)),
    );
  });
  return el("div", { class: "photos views" }, buttons);
}

function labels(about) {
  const own = name => OWN.indexOf(name),
    all = Object.entries(about.labels).filter(([name]) => name !== "image_id");
  const ordered = [...all.filter(([name]) => own(name) < 0), ...all.filter(([name]) => own(name) >= 0)];
  return section(
    "Labels",
    facts([...ordered.map(([name, value]) => [plain(name), label(name, value)]), ["position", num(about.position)]]),
  );
}

function label(name, value) {
  if (name === "sha256") return `${String(value).slice(0, 12)} …`;
  return Number.isFinite(value) ? `${num(value)}${unitOf(name)}` : num(value);
}

/** A row a run, a column a target: what was predicted while the photograph was held out, and how far that is off. */
function predictions(store, about, severalSweeps, chosen) {
  const all = about.predictions;
  if (!all.length)
    return section("Predictions out of fold", el("p", { class: "muted" }, "No served sweep predicts this photograph."));
  const targets = [...new Set(all.map(each => each.target))],
    rows = new Map();
  for (const each of all) {
    const key = `${each.sweep}/${each.run}`;
    if (!rows.has(key)) rows.set(key, { sweep: each.sweep, run: each.run });
    rows.get(key)[each.target] = each;
  }
  const columns = [
    {
      key: "run",
      title: "Run",
      of: row => row.run,
      text: true,
      show: row => el("a", { class: "run", href: href({ page: "sweeps", sweep: row.sweep, run: row.run }, ["store"]) }, row.run),
    },
    ...(severalSweeps ? [{ key: "sweep", title: "Sweep", of: row => row.sweep, text: true }] : []),
    ...targets.map(target =>
      column(
        target,
        all.filter(each => each.target === target),
      ),
    ),
  ];
  const grams = targets.every(unitOf) ? " grams" : "",
    classes = all.some(each => each.predicted_word) ? "; of a class the probability of the true word" : "",
    told = `Predicted${grams}, and how far off; dot: predicted, upright line: true${classes}`;
  const mark = row => (row.run === chosen.run && row.sweep === chosen.sweep ? "chosen" : null);
  return section(
    "Predictions out of fold",
    sortable(told, columns, [...rows.values()], { name: "predicted", most: 12, mark }),
    twins(imageUrl(store, about.image_id, "/predictions.json"), "Predictions out of fold"),
  );
}

function column(target, all) {
  const word = all.find(each => each.true_word)?.true_word,
    isClass = all.some(each => each.predicted_word);
  const range = isClass ? [0, 1] : span(all.flatMap(each => [each.true, each.predicted])),
    truth = all.find(each => each.true !== null)?.true ?? null;
  const error = each => (each === undefined || each.true === null || each.predicted === null ? null : each.predicted - each.true);
  const told = each => (each?.predicted_word ? `${each.predicted_word} ${num(each.predicted, 3)}` : amount(target, each?.predicted));
  return {
    key: target,
    title: `${plain(target)}, true ${word ?? withUnit(target, truth)}`,
    of: row => row[target]?.predicted,
    show: row =>
      el(
        "span",
        { class: "tracked" },
        track(range, { value: row[target]?.predicted, marks: [{ value: truth, kind: "truth" }], kind: "narrow" }),
        told(row[target]),
        isClass || truth === null ? null : el("span", { class: "muted error" }, signed(target, error(row[target]))),
      ),
  };
}
