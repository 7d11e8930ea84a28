// New photographs: what is predicted, how sure that is, the maps, and how far the sweep and its ridge are off.

import { beyond, drawn, expect, open, title, violations } from "./tools.mjs";

export const PREDICTIONS = {
  async predictions(browser) {
    const found = [];
    for (const width of [390, 1280]) {
      const page = await open(browser, "", { viewport: { width, height: 844 }, colorScheme: width < 600 ? "dark" : "light" });
      const go = async link => {
        await link.click();
        await drawn(page);
      };
      await go(page.locator("header nav a", { hasText: "Predictions" }));
      await page.getByLabel("Order").selectOption("-doubt");
      await drawn(page);
      const cards = page.locator(".photos .photo"),
        list = await cards.locator(".id").allTextContents(),
        words = await cards.first().locator(".small").textContent(),
        board = page.locator("table").first();
      await cards.last().scrollIntoViewIfNeeded();
      await drawn(page);
      const pictures = await cards.locator("img").evaluateAll(all => all.filter(each => each.naturalWidth > 0).length),
        heads = await board.locator("thead tr:last-child > *").allTextContents(),
        group = await board.locator(".group").first().textContent(),
        interval = await board.locator("tbody tr").first().locator("td").nth(1).textContent();
      const serious = await violations(page);
      await go(cards.first());
      const opened = await title(page),
        image = page.locator("section img.alone"),
        maps = [(await image.count()) === 1];
      serious.push(...(await violations(page)));
      let wider = await beyond(page);
      await page.locator("[data-stay=next]").press("Enter");
      await page.waitForFunction(was => document.querySelector("main h1").textContent !== was, opened);
      await drawn(page);
      await page.waitForFunction(() => !document.querySelector("section img.alone"));
      expect(404);
      const next = await title(page),
        none = await page.locator("main").textContent();
      maps.push((await image.count()) === 1);
      await go(page.getByRole("link", { name: "Back to the predictions" }));
      const back = await page.locator(".photo[aria-current] .id").textContent();
      wider = Math.max(wider, await beyond(page));
      const ridge = page.locator("table").last().locator("tr", { hasText: "ridge" }).last();
      const told = await ridge.textContent();
      await go(ridge.locator("a").first());
      const errors = await page.locator("main").textContent();
      found.push({ list, words, pictures, heads, group, interval, opened, maps, next, none, back, ridge: told, errors, wider });
      found.at(-1).axe = serious.map(each => each.id);
    }
    return { found };
  },
};
