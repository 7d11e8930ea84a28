// node claims.mjs CLAIM URL [WORD]: does one thing as a person would in Chromium, prints what is to be seen as JSON.
//
// URL is the one `store serve` prints, token and all. `noise` is what no claim may leave behind: messages on the console, errors,
// and requests to anywhere else.

import { chromium } from "playwright-core";
import { CHARTS } from "./charts.mjs";
import { PREDICTIONS } from "./predictions.mjs";
import { LIVE } from "./live.mjs";
import { TABLES } from "./tables.mjs";
import { beyond, drawn, expect, listened, noise, ontoPoint, open, arrive, pixels, title, violations } from "./tools.mjs";
import { claim, FLAGS, home, NARROW, url, WIDE, word } from "./tools.mjs";
import { WALK } from "./walk.mjs";

const VIEWS = ["", "page=map", "page=photographs&order=-off", "page=photograph&layer=similar&patch=1,1", "page=sweeps", "page=compare"];

const CLAIMS = {
  ...LIVE,
  ...TABLES,
  ...WALK,
  ...PREDICTIONS,
  ...CHARTS,

  async point(browser) {
    const page = await open(browser, "page=map"),
      at = await ontoPoint(page);
    const hovered = await page.locator(".tip strong").textContent();
    await page.mouse.click(...at);
    await page.waitForFunction(() => location.search.includes("page=photograph"));
    await drawn(page);
    return { hovered, opened: await title(page) };
  },

  async patch(browser) {
    const page = await open(browser, "page=photograph"),
      stage = page.locator(".stage"),
      { width, height } = await stage.boundingBox();
    await stage.click({ position: { x: width * 0.6, y: height * 0.2 } });
    await page.locator("h2:has-text('The same in other photographs')").waitFor();
    await drawn(page);
    const query = new URL(page.url()).searchParams,
      [row, column] = query.get("patch").split(",").map(Number);
    const seen = await page.locator(".stage canvas").evaluate(
      (canvas, [x, y]) => {
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return {
          size: [canvas.height, canvas.width],
          at: [...data.slice(4 * (x + canvas.width * y)).slice(0, 3)],
          colours: new Set(new Uint32Array(data.buffer)).size,
        };
      },
      [column, row],
    );
    return { ...seen, patch: [row, column], others: await page.locator(".photo canvas").count() };
  },

  async bookmark(browser) {
    const page = await open(browser, "page=map"),
      chosen = other => other.locator("select").evaluateAll(all => all.map(each => each.value));
    await page.getByLabel("Colour").selectOption("error:Dry_Dead_g");
    await page.locator(".scatter").focus();
    await page.keyboard.press("+");
    await page.waitForFunction(() => location.search.includes("box="));
    await page.locator("label:has-text('View') select").first().focus(); // no ring around a point
    await drawn(page);
    const other = await open(browser, new URL(page.url()).search.slice(1));
    return {
      chosen: [await chosen(page), await chosen(other)],
      same: (await pixels(page, "canvas.points")) === (await pixels(other, "canvas.points")),
    };
  },

  async back(browser) {
    const page = await open(browser, "page=map&colour=Dry_Total_g");
    const before = await pixels(page, "canvas.points");
    await page.mouse.click(...(await ontoPoint(page)));
    await page.waitForFunction(() => location.search.includes("page=photograph"));
    await drawn(page);
    await page.goBack();
    await drawn(page);
    return { title: await title(page), same: before === (await pixels(page, "canvas.points")) };
  },

  async curve(browser) {
    const page = await open(browser, "page=sweeps"),
      plot = page.locator(".plot").last();
    await plot.press("ArrowLeft"); // the last epoch
    await plot.press("ArrowUp"); // its lowest curve
    const said = await page.locator("#status").textContent(),
      { x, y, width, height } = await plot.locator(".dot").boundingBox();
    await page.mouse.click(x + width / 2, y + height / 2);
    await page.waitForFunction(() => document.activeElement.textContent === "Worst photographs");
    const told = await page.locator("section:has(> h3:focus) .caption").textContent(),
      down = () => page.evaluate(() => Math.round(scrollY));
    await drawn(page); // pictures that come make the page shorter
    const left = await down();
    await page.locator("section:has(> h3:focus) .photo").first().click();
    await page.waitForFunction(() => location.search.includes("page=photograph"));
    await drawn(page);
    const opened = await title(page);
    await page.goBack();
    await drawn(page);
    await page.waitForFunction(y => Math.round(scrollY) === y, left, { timeout: 9000 }).catch(() => {}); // pictures come near first
    return { said, told, opened, fold: new URL(page.url()).searchParams.get("fold"), left, back: await down() };
  },

  async state(browser) {
    const page = await open(browser, ""),
      shown = async () => [
        await page.locator("main .link[aria-pressed=true]").allTextContents(),
        await page.locator("figcaption").first().textContent(),
      ];
    await page.locator("main .link").first().click();
    await drawn(page);
    const pressed = await shown();
    await page.reload();
    await drawn(page);
    const again = await shown();
    await page.locator("main .link[aria-pressed=true]").click();
    await drawn(page);
    return { pressed, again, none: await shown() };
  },

  async keyboard(browser) {
    const page = await open(browser, ""),
      active = () => page.evaluate(() => document.activeElement.className || document.activeElement.textContent);
    const until = async wanted => {
      for (let i = 0; i < 40 && !(await active()).startsWith(wanted); i++) await page.keyboard.press("Tab");
    };
    await until("Map");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => location.search.includes("page=map"));
    await drawn(page);
    await until("scatter");
    await page.keyboard.press("ArrowRight");
    await page.keyboard.press("ArrowRight");
    const said = await page.locator("#status").textContent();
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => location.search.includes("page=photograph"));
    await drawn(page);
    return { said, opened: await title(page) };
  },

  async axe(browser) {
    const found = [];
    for (const [viewport, colorScheme] of [
      [WIDE, "light"],
      [NARROW, "dark"],
      [{ width: 320, height: 640 }, "light"],
    ]) {
      const page = await open(browser, "", { viewport, colorScheme });
      for (const view of VIEWS) {
        await arrive(page, `/?${view}`);
        const serious = await violations(page);
        found.push(...serious.map(each => `${view} ${colorScheme} ${each.id}: ${each.nodes.map(node => node.target).join(" ")}`));
        const wider = await beyond(page);
        if (wider > 0) found.push(`${view} ${colorScheme} is ${wider} pixels wider than the window`);
      }
    }
    return { found };
  },

  async compare(browser) {
    const page = await open(browser, "page=sweeps", { viewport: { width: 1280, height: 900 } });
    await page.getByRole("link", { name: "Compare with another run" }).click();
    await page.waitForFunction(() => location.search.includes("page=compare"));
    await drawn(page);
    const bare = await open(browser, "page=compare"),
      curveless = await bare.locator("section", { has: bare.getByRole("heading", { name: "Curves" }) }).textContent();
    const trained = await page.getByLabel("Run B").locator("option").evaluateAll(all => all.map(each => each.value).find(each => /^\d/.test(each)));
    await page.getByLabel("Run B").selectOption(trained); // no blend, which has no curves
    await page.waitForFunction(() => location.search.includes("b="));
    await drawn(page);
    const legend = () => page.locator("main .legend").first().textContent(),
      first = await legend();
    await page.getByRole("button", { name: "Swap A and B" }).click();
    await page.waitForFunction(was => document.querySelector("main .legend").textContent !== was, first);
    await drawn(page);
    const swapped = await legend(),
      state = new URL(page.url()).searchParams;
    const other = await open(browser, new URL(page.url()).search.slice(1), { viewport: NARROW });
    const beyond = await other.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    const settings = await page.locator("table[aria-label^='Settings that differ'] tbody tr").evaluateAll(all => all.map(row => [...row.cells].map(cell => cell.textContent))),
      curves = await page.locator(".plot").first().locator("path").count(),
      worse = await page.locator(".photo .id").first().textContent();
    await page.locator(".square-chart").press("ArrowRight");
    const said = await page.locator("#status").textContent();
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => location.search.includes("page=photograph"));
    await drawn(page);
    const address = [state.get("a"), state.get("b")];
    return { first, swapped, address, settings, curveless, again: await other.locator("main .legend").first().textContent(), beyond, curves, worse, said, opened: await title(page) };
  },

  async nearer(browser) {
    const page = await open(browser, "page=map"),
      known = () => page.locator(".map-note").textContent(),
      named = () =>
        page.getByLabel("Run B").evaluate(field => [field.labels[0].querySelector("span").textContent, field.value.split("/")[0]]);
    await page.getByLabel("Colour").selectOption("nearer:Dry_Dead_g");
    await page.getByLabel("Run B").waitFor();
    await drawn(page);
    const [told, first] = [await known(), await pixels(page, "canvas.points")];
    const names = [await named()];
    const others = await page.getByLabel("Run B").locator("optgroup").count();
    await page.getByLabel("Run B").selectOption({ index: 1 });
    await page.waitForFunction(() => location.search.includes("b="));
    await drawn(page);
    names.push(await named());
    const then = await pixels(page, "canvas.points"),
      again = await open(browser, new URL(page.url()).search.slice(1));
    return { told, others, names, changed: first !== then, same: then === (await pixels(again, "canvas.points")) };
  },

  /** A map of few photographs, and one that takes them for many; word: its address. */
  async differing(browser) {
    const told = [];
    for (const n_sealed of [null, 200_001]) {
      const page = await listened(browser);
      await page.goto(url);
      if (n_sealed)
        await page.route("**/v1/stores", async route => {
          const response = await route.fetch(),
            { stores, ...rest } = await response.json();
          await route.fulfill({ response, json: { stores: stores.map(each => ({ ...each, n_sealed })), ...rest } });
        });
      const answered = page.waitForResponse(response => response.status() === 404);
      await arrive(page, `/?${word}`);
      told.push([new URL((await answered).url()).searchParams.get("every"), await page.locator("[role=alert] strong").textContent()]);
    }
    expect(404);
    return { told };
  },

  async refused(browser) {
    const page = await open(browser, `page=photograph&image=${encodeURIComponent(word)}`);
    const told = await page.locator("[role=alert]").textContent();
    expect(404);
    return { told, around: await page.locator(".around").textContent() };
  },

  async unknown(browser) {
    const page = await open(browser, ""),
      told = [];
    for (const query of word.split(" ")) {
      await arrive(page, `/?${query}`);
      told.push(await page.locator("[role=alert]").allTextContents());
    }
    expect(404);
    await page.locator("[role=alert] a").click(); // the way out
    await drawn(page);
    return { told, alerts: await page.locator("[role=alert]").count(), query: new URL(page.url()).search };
  },

  async sweeps(browser) {
    const page = await open(browser, "page=photograph"),
      tables = page.locator("table[aria-label^=Predicted]"),
      predictions = await tables.locator("td.text").allTextContents();
    await arrive(page, "/?page=sweeps");
    const board = await page.locator("table").first().getAttribute("aria-label"),
      run = await page.locator("h2 .muted").textContent();
    await arrive(page, "/?page=map&colour=error:Dry_Dead_g");
    return { predictions, board, run, map: await page.locator("label:has-text('Run of')").count() };
  },

  async blend(browser) {
    const page = await open(browser, "page=sweeps");
    await page.locator("tr:has-text('(blend)') a.run").first().click();
    await page.waitForFunction(() => location.search.includes("run=blend"));
    await drawn(page);
    return { parts: await page.locator("h3").allTextContents() };
  },

  async gray(browser) {
    const page = await open(browser, `store=${word}&page=map&colour=Notes`);
    return { told: await page.locator(".map-note").textContent(), ramps: await page.locator(".ramp").count() };
  },

  async token(browser) {
    const page = await listened(browser, { viewport: NARROW, colorScheme: "dark" });
    await page.goto(`${home}?page=map&token=old&colour=Dry_Dead_g`);
    const field = page.getByLabel("Token"),
      told = page.getByRole("alert"),
      stale = await told.textContent();
    const found = (await violations(page)).map(each => each.id),
      wider = await beyond(page);
    await page.keyboard.type("not-the-right-one"); // the field has the focus
    await page.keyboard.press("Enter");
    await page.waitForFunction(text => document.querySelector("[role=alert]").textContent !== text, stale);
    const wrong = await told.textContent();
    await field.fill(url); // as the server printed it
    await page.keyboard.press("Enter");
    await drawn(page);
    expect(401);
    const query = Object.fromEntries(new URL(page.url()).searchParams);
    return { stale, wrong, found, beyond: wider, title: await title(page), query };
  },

  async text(browser) {
    const found = [];
    for (const view of ["", "page=map", "page=photograph"]) {
      const page = await open(browser, `store=${word}&${view}`);
      found.push([
        await page.locator("main img[src='x']").count(),
        (await page.locator("main").textContent()).includes("<img src=x"),
      ]);
    }
    return { found };
  },
};

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: FLAGS });
try {
  console.log(JSON.stringify({ ...(await CLAIMS[claim](browser)), noise }));
} finally {
  await browser.close();
}
