// One filter for all pages, and the way from an error to its photograph, on to the next, and back.

import { beyond, drawn, open, title, violations } from "./tools.mjs";

const SIZES = [
  { width: 390, height: 844 },
  { width: 1280, height: 900 },
];
const ids = page => page.locator(".photos:not(.views) .photo .id").allTextContents();
const query = page => Object.fromEntries(new URL(page.url()).searchParams);
const choose = async (page, name, value) => {
  const field = page.locator(`.filter [data-name="${name}"] select`);
  await field.focus();
  await field.selectOption(value);
  await drawn(page);
};
const enter = async (page, name, value) => {
  await page.locator(`.filter [data-name="${name}"] input`).fill(value);
  await page.keyboard.press("Tab");
  await drawn(page);
};
const follow = async (page, link) => {
  await link.click();
  await drawn(page);
};

export const WALK = {
  /** One State, one fold and a least error are chosen in the bar, and hold on every page. */
  async filter(browser) {
    const found = [];
    for (const viewport of SIZES) {
      const page = await open(browser, "page=photographs", { viewport });
      const whole = (await ids(page)).length;
      await page.locator(".filter summary").press("Enter");
      await drawn(page);
      await choose(page, "in.State", "Tas");
      const focus = await page.evaluate(() => document.activeElement.closest("[data-name]")?.dataset.name);
      const ofState = await ids(page);
      await choose(page, "sign", "high");
      await enter(page, "off", "1.5");
      const shown = await ids(page),
        words = await page.locator(".filter .words").textContent();
      const serious = await violations(page),
        wider = await beyond(page);
      const told = {};
      for (const name of ["Overview", "Map", "Sweeps"]) {
        await follow(page, page.locator("header nav a", { hasText: name }));
        told[name] = {
          words: await page.locator(".filter .words").textContent(),
          main: await page.locator("main").textContent(),
        };
      }
      await page.reload();
      await drawn(page);
      const reloaded = await page.locator(".filter .words").textContent();
      await follow(page, page.getByRole("button", { name: "Clear the filter" }));
      const kept = Object.keys(query(page)).filter(key => /^(in\.|sign|off)/.test(key));
      found.push({ whole, focus, ofState, shown, words, told, reloaded, kept, axe: serious.map(each => each.id), wider });
    }
    return { found };
  },

  /** From the worst photographs of a fold to one of them, on to the next by keyboard, and back to where one was. */
  async walk(browser) {
    const found = [];
    for (const viewport of SIZES) {
      const page = await open(browser, "page=sweeps&in.State=Tas", { viewport });
      const fold = await page.locator("label:has-text('Fold') select").last();
      await fold.selectOption({ index: 1 });
      await drawn(page);
      const list = await ids(page),
        run = await page.locator("main h2").nth(1).textContent(),
        down = await page.evaluate(() => Math.round(scrollY));
      await follow(page, page.locator(".photos .photo").nth(0));
      const first = await title(page),
        place = await page.locator(".around").textContent();
      await page.locator("[data-stay=next]").press("Enter");
      await page.waitForFunction(was => document.querySelector("main h1").textContent !== was, first);
      await drawn(page);
      const second = await title(page),
        focus = await page.evaluate(() => document.activeElement.dataset.stay),
        state = query(page);
      const serious = await violations(page),
        wider = await beyond(page);
      await follow(page, page.getByRole("link", { name: "Back to the run" }));
      await page.locator(".photo[aria-current]").waitFor();
      await page.waitForTimeout(300);
      const marked = page.locator(".photo[aria-current]");
      const back = {
        id: await marked.locator(".id").textContent(),
        seen: await marked.evaluate(made => {
          const { top, bottom } = made.getBoundingClientRect();
          return top >= 0 && bottom <= innerHeight;
        }),
        focused: await marked.evaluate(made => made === document.activeElement),
        list: await ids(page),
        fold: query(page).fold,
        run: await page.locator("main h2").nth(1).textContent(),
      };
      found.push({ list, run, down, first, place, second, focus, state, back, axe: serious.map(each => each.id), wider });
    }
    return { found };
  },

  /** More of a list is shown; arrow keys go through it; after a photograph the same is there. */
  async more(browser) {
    const page = await open(browser, "page=sweeps"),
      worst = page.locator(".photos").last();
    await page.getByRole("button", { name: "Show more" }).press("Enter");
    await page.waitForFunction(() => new URLSearchParams(location.search).has("n"));
    await drawn(page);
    const list = await ids(page);
    const active = () => page.evaluate(() => document.activeElement.querySelector(".id")?.textContent);
    const begun = await active();
    await page.keyboard.press("ArrowRight");
    const right = await active();
    await page.keyboard.press("Home");
    await page.keyboard.press("ArrowDown");
    const below = await active();
    await page.keyboard.press("End");
    const end = await active();
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => location.search.includes("page=photograph"));
    await drawn(page);
    const opened = await title(page);
    await follow(page, page.getByRole("link", { name: "Back to the run" }));
    await page.locator(".photo[aria-current]").waitFor();
    return { list, begun, right, below, end, opened, again: await ids(page), all: await worst.count() };
  },

  /** What two runs differ most on, in that order. */
  async among(browser) {
    const page = await open(browser, "page=compare"),
      list = await ids(page);
    await follow(page, page.locator(".photos .photo").nth(1));
    const opened = await title(page);
    await follow(page, page.locator("[data-stay=next]"));
    const next = await title(page);
    await follow(page, page.locator(".around a").first());
    await page.locator(".photo[aria-current]").waitFor();
    return { list, opened, next, back: await title(page), marked: await page.locator(".photo[aria-current] .id").textContent() };
  },

  /** A line is drawn around points, or the map is zoomed by keyboard: their photographs. */
  async lasso(browser) {
    const found = [];
    for (const viewport of SIZES) {
      const page = await open(browser, "page=map&view=hflip", { viewport });
      await page.getByRole("button", { name: "Lasso" }).click();
      const chart = page.locator(".scatter");
      await chart.scrollIntoViewIfNeeded();
      const { x, y, width, height } = await chart.boundingBox();
      await page.mouse.move(x + 5, y + 5);
      await page.mouse.down();
      for (const [right, down] of [
        [0.5, 0.02],
        [0.5, 0.98],
        [0.02, 0.98],
      ])
        await page.mouse.move(x + right * width, y + down * height, { steps: 12 });
      await page.mouse.up();
      await page.waitForFunction(() => location.search.includes("page=photographs"));
      await drawn(page);
      const roped = await ids(page),
        lasso = query(page).lasso,
        words = await page.locator(".filter .words").textContent();
      await page.goBack();
      await drawn(page);
      const map = await page.locator(".scatter");
      await map.press("ArrowRight");
      for (let i = 0; i < 4; i++) await map.press("+"); // about the point
      await map.press("Shift+ArrowLeft");
      await map.press("Shift+ArrowRight");
      await page.waitForFunction(() => location.search.includes("box="));
      const at = await page.locator("#status").textContent();
      await page.getByRole("button", { name: "Photographs in sight" }).press("Enter");
      await page.waitForFunction(() => location.search.includes("page=photographs"));
      await drawn(page);
      found.push({ roped, lasso, words, at, inSight: await ids(page), wider: await beyond(page) });
    }
    return { found };
  },
};
