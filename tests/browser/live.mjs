// What goes on while somebody looks: a sweep that is being trained, and a store that is being built.

import { appendFile, rename, writeFile } from "node:fs/promises";
import { beyond, drawn, NARROW, open, violations, word } from "./tools.mjs";

const told = page => page.locator(".progress .told").textContent();
const curve = page => page.locator(".plot path").last().getAttribute("d");
const until = (page, text) => page.locator(".progress .told", { hasText: text }).waitFor();

export const LIVE = {
  /** word: a sweep's folder, its run's log, and the log's next line, as JSON. */
  async live(browser) {
    const { sweep, log, line, summary } = JSON.parse(word),
      page = await open(browser, "page=sweeps", { viewport: { width: 1280, height: 900 } }),
      narrow = await open(browser, "page=sweeps", { viewport: NARROW, colorScheme: "dark" });
    const found = [...(await violations(page)), ...(await violations(narrow))].map(each => each.id),
      wider = await beyond(narrow),
      [first, drawnFirst] = [await told(page), await curve(page)];
    await page.mouse.move(5, 5);
    await appendFile(log, line);
    await until(page, "Epoch 4 of 4");
    await page.waitForFunction(was => [...document.querySelectorAll(".plot path")].at(-1)?.getAttribute("d") !== was, drawnFirst);
    const then = await told(page),
      score = await page.locator("table[aria-label*='cores so far'] td").first().textContent();
    await writeFile(`${sweep}/partial`, summary);
    await rename(`${sweep}/partial`, `${sweep}/summary.json`);
    await page.locator("h2", { hasText: "Leaderboard" }).waitFor();
    await drawn(page);
    return { first, then, score, found, wider, progress: await page.locator(".progress").count() };
  },

  async stopped(browser) {
    const page = await open(browser, "page=sweeps");
    return { told: await told(page), advice: await page.locator(".progress .muted").textContent() };
  },

  /** word: a file that is made once the first state was seen. */
  async building(browser) {
    const page = await open(browser, ""),
      first = await told(page),
      found = (await violations(page)).map(each => each.id);
    await writeFile(word, "");
    await until(page, "3 of 5");
    await writeFile(`${word}2`, "");
    await page.waitForFunction(() => !document.querySelector(".progress"));
    await drawn(page);
    return { first, found, facts: await page.locator(".facts dd").first().textContent() };
  },
};
