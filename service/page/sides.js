// Two runs that are compared: which the address names, and fields to choose others.
//
// `a` and `b` of the address are SWEEP/RUN, or SWEEP for the one that the sweep chose.

import { early, get } from "./api.js";
import { el, select } from "./dom.js";
import { go, href, refused } from "./state.js";

const BEST = ""; // a sweep's own choice, in the address and in the field

/** Where the server compares them. */
export const besideUrl = (a, b) =>
  `${a.sweep.url}/runs/${encodeURIComponent(a.run)}/beside/${[b.sweep.name, b.run].map(encodeURIComponent).join("/")}`;

/** Names of what a sweep has predictions of, the best first: runs, baselines and blends. */
export function comparable(about) {
  const all = [...about.runs.filter(run => run.has_oof), ...about.blends],
    sign = about.larger_is_better ? -1 : 1,
    merit = ({ score }) => (Number.isFinite(score) ? sign * score : Infinity);
  return all.sort((p, q) => merit(p) - merit(q) || 0).map(({ name }) => name);
}

/** [{ letter, sweep, about, run, isBest, isBlend }] of both; where the address is silent, the best two there are. */
export async function sidesOf(state, sweeps, signal) {
  const named = ["a", "b"].map(key => parsed(state[key], key, sweeps)),
    first = named[0]?.sweep ?? sweeps[0],
    second = named[1]?.sweep ?? sweeps.find(each => each !== first) ?? first;
  const abouts = await Promise.all([first, second].map(sweep => early(get(sweep.url, signal))));
  const a = side("a", first, abouts[0], named[0]?.run);
  return [a, side("b", second, abouts[1], named[1]?.run, named[1] || first !== second ? null : a.run)];
}

/** "SWEEP/RUN" as { sweep, run }; no folder's name holds a slash. */
function parsed(text, key, sweeps) {
  if (!text) return null;
  const [name, ...rest] = text.split("/"),
    sweep = sweeps.find(each => each.name === name);
  if (sweep) return { sweep, run: rest.join("/") };
  throw refused(`there is no sweep ${name} here`, `There is ${sweeps.map(each => each.name).join(", ")}.`, key);
}

/** but: a run that it should not be, where the address names none. */
function side(letter, sweep, about, run, but = null) {
  const names = comparable(about);
  if (!names.length)
    throw refused(`no run of ${sweep.name} has predictions out of fold yet`, "They come when the sweep is finished.", letter);
  if (run && !names.includes(run))
    throw refused(`${sweep.name} has no predictions of a run ${run}`, `It has ${names.slice(0, 8).join(", ")}.`, letter);
  const best = [about.chosen, about.best, ...names].find(name => names.includes(name) && name !== but) ?? names[0];
  return {
    letter: letter.toUpperCase(),
    sweep,
    about,
    names,
    run: run || best,
    isBest: !run && !but,
    isBlend: about.blends.some(blend => blend.name === (run || best)),
  };
}

/** Fields for both, and a button that swaps them. */
export function chooseSides(sides, sweeps) {
  const named = ({ sweep, run, isBest }) => (isBest ? sweep.name : `${sweep.name}/${run}`);
  const to = changes => go(href({ a: named(sides[0]), b: `${sides[1].sweep.name}/${sides[1].run}`, ...changes }));
  const fields = each => {
    const key = each.letter.toLowerCase(),
      options = [[BEST, `the best: ${each.isBest ? each.run : "as the sweep chose"}`], ...each.names.map(name => [name, name])];
    return el(
      "div",
      { class: "side-fields", role: "group", "aria-label": each.letter },
      sweeps.length > 1
        ? select(
            `Sweep ${each.letter}`,
            sweeps.map(({ name }) => [name, name]),
            each.sweep.name,
            name => to({ [key]: name }),
          )
        : null,
      select(`Run ${each.letter}`, options, each.isBest ? BEST : each.run, run => to({ [key]: run ? `${each.sweep.name}/${run}` : each.sweep.name })),
    );
  };
  const swap = () => to({ a: `${sides[1].sweep.name}/${sides[1].run}`, b: `${sides[0].sweep.name}/${sides[0].run}` });
  return el("div", { class: "controls" }, sides.map(fields), el("button", { type: "button", onclick: swap }, "Swap A and B"));
}
