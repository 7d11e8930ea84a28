// Tables: what stands first at every width, and what the address keeps.

import { beyond, drawn, open, violations, word } from "./tools.mjs";

const WIDTHS = [320, 390, 1280];

/** Words of the headings that are wholly in sight, each above its column. */
const seen = table =>
  table.evaluate(made => {
    const { right } = made.closest(".scroll").getBoundingClientRect();
    const heads = [...made.querySelectorAll("thead tr:last-child > *")];
    return heads.filter(head => head.getBoundingClientRect().right <= right + 1).map(head => head.textContent);
  });

export const TABLES = {
  /** Cells of a leaderboard by run and heading. */
  async dashes(browser) {
    const page = await open(browser, "page=sweeps&sweep=again"),
      table = page.locator("table").first();
    const board = await table.evaluate(made => {
      const heads = [...made.tHead.rows].at(-1).cells,
        cellsOf = row => [...row.cells].map((cell, i) => [heads[i].textContent, cell.textContent]);
      return Object.fromEntries([...made.tBodies[0].rows].map(row => [row.cells[0].textContent, Object.fromEntries(cellsOf(row))]));
    });
    return { board };
  },

  /** A prediction's table. */
  async spread(browser) {
    const page = await open(browser, `page=prediction&image=${encodeURIComponent(word)}`),
      table = page.locator("table").first();
    return {
      told: await table.getAttribute("aria-label"),
      heads: await table.locator("thead tr:last-child > *").allTextContents(),
      first: await table.locator("tbody tr").first().textContent(),
    };
  },

  async first(browser) {
    const found = {};
    for (const width of WIDTHS) {
      const page = await open(browser, "page=sweeps", { viewport: { width, height: 800 } });
      found[width] = await seen(page.locator("table").first());
    }
    return found;
  },

  async columns(browser) {
    const found = [];
    for (const width of [390, 1280]) {
      const page = await open(browser, "page=sweeps", { viewport: { width, height: 844 } }),
        table = page.locator("table").first();
      const told = async () => ({
        heads: await table.locator("thead tr:last-child > *").allTextContents(),
        groups: await table.locator(".group").allTextContents(),
        first: await table.locator("tbody th").first().textContent(),
        sorted: await table.locator("[aria-sort]").allTextContents(),
        open: await page.locator(".chooser").isVisible(),
      });
      const whole = await told();
      await page.locator("summary", { hasText: "Columns" }).press("Enter");
      await page.getByLabel("R² by target").uncheck(); // a group
      await page.getByLabel("kind").uncheck(); // a column
      await table.getByRole("button", { name: "lr" }).press("Enter");
      await table.getByRole("button", { name: "lr" }).press("Enter"); // it has kept the focus
      const chosen = await told(),
        serious = await violations(page);
      await page.reload();
      await drawn(page);
      found.push({ whole, chosen, again: await told(), axe: serious.map(each => each.id), beyond: await beyond(page) });
    }
    return { found };
  },
};
