// Charts as files, and a map that cannot be drawn.

import { readFile } from "node:fs/promises";
import { drawn, expect, open, pixels } from "./tools.mjs";

/** Compare two runs that have curves. */
async function chooseTrained(page) {
  for (const letter of ["A", "B"]) {
    const field = page.getByLabel(`Run ${letter}`),
      names = await field.locator("option").evaluateAll(all => all.map(each => each.value));
    await field.selectOption(names.find(name => /^\d/.test(name)));
    await drawn(page);
  }
}

export const CHARTS = {
  /** A scatter and a line chart of one run, and those of two, each saved as both kinds. */
  async saved(browser) {
    const found = {};
    for (const [name, query, nth, prepare] of [
      ["map", "page=map&colour=State", 0],
      ["curves", "page=sweeps", 1],
      ["curves of two", "page=compare", 0, chooseTrained],
      ["errors of two", "page=compare", -1],
      ["map of two", "page=map&colour=nearer:Dry_Dead_g", 0],
    ]) {
      const page = await open(browser, query);
      await prepare?.(page);
      for (const kind of ["PNG", "SVG"]) {
        const coming = page.waitForEvent("download");
        await page.getByRole("button", { name: `Save this chart as ${kind}` }).nth(nth).press("Enter");
        const file = await coming,
          bytes = await readFile(await file.path());
        found[`${name} ${kind}`] = {
          file: file.suggestedFilename(),
          start: bytes.subarray(1, 4).toString(),
          circles: bytes.toString().split('a2').length - 1,
          paths: bytes.toString().split("<path").length - 1,
          words: [...bytes.toString().matchAll(/>([^<>]+)<\/text>/g)].map(match => match[1]),
        };
      }
    }
    return found;
  },

  /** Curves of two runs over 20 epochs, whose scores begin below 0 and whose losses span three powers of ten. */
  async below(browser) {
    const page = await open(browser, "page=compare");
    await page.route("**/curves.json*", async route => {
      const response = await route.fetch(),
        { columns, rows, ...rest } = await response.json();
      const told = rows.map(row => {
        const epoch = row[columns.indexOf("epoch")],
          put = { epoch: [0, 10, 15, 20][epoch], score: [-0.7, 0.02, 0.3, 0.9][epoch], loss: 100 / 10 ** epoch };
        return columns.map((name, i) => put[name] ?? row[i]);
      });
      await route.fulfill({ response, json: { columns, rows: told, ...rest } });
    });
    await chooseTrained(page);
    return {
      told: await page.locator("figure:has(.lines) figcaption").allTextContents(),
      drawn: await page.locator(".lines path").evaluateAll(all => all.map(each => each.getAttribute("d"))),
    };
  },

  /** Two runs, and a target that the server fails at. */
  async failing(browser) {
    const page = await open(browser, "page=compare"),
      target = page.getByLabel("Target"),
      names = await target.locator("option").evaluateAll(all => all.map(each => each.value));
    await page.route("**/errors.json?target=*", route => route.fulfill({ status: 503, body: "" }));
    await target.selectOption(names[1]);
    await page.locator("[role=alert]").waitFor();
    expect(503);
    const busy = await page.locator("main [aria-busy]").count();
    await page.unroute("**/errors.json?target=*");
    await target.selectOption(names[2]);
    await page.locator(".square-chart").waitFor();
    return { busy, alerts: await page.locator("[role=alert]").count() };
  },

  /** What stands over the photographs on which two runs differ most, where there are few, and where there are more than are listed. */
  async listed(browser) {
    const page = await open(browser, "page=compare"),
      section = page.locator("section:has(> h3:text('differ most'))"),
      told = [await section.locator(".caption").count()];
    await page.route("**/photographs.json?*apart=1*", async route => {
      const response = await route.fetch();
      await route.fulfill({ response, json: { ...(await response.json()), total: 12_345 } });
    });
    await page.reload();
    await drawn(page);
    told.push(await section.locator(".caption").textContent());
    return { told };
  },

  /** A method that is not installed is not offered; its address tells why, and shows no other method's points. */
  async methods(browser) {
    const page = await open(browser, "page=map&colour=State"),
      names = () => page.getByLabel("Method").locator("option").allTextContents();
    const offered = await names(),
      full = await pixels(page, "canvas.points");
    await page.getByLabel("Method").selectOption("tsne");
    await drawn(page);
    await page.evaluate(() => history.pushState(null, "", `${location.search}&method=umap`.replace("method=tsne&", "")));
    await page.reload();
    await drawn(page);
    expect(501);
    const told = await page.locator("[role=alert]").textContent();
    const isBlank = await page
      .locator("canvas.points")
      .evaluate(canvas => !canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean));
    await page.getByLabel("Method").selectOption("pca");
    await drawn(page);
    const again = (await pixels(page, "canvas.points")) === full;
    await page.getByLabel("Method").selectOption("umap");
    await page.locator("[role=alert]").waitFor();
    await page.waitForTimeout(100);
    expect(501);
    const cleared = (await pixels(page, "canvas.points")) !== full;
    return { offered, told, isBlank, again, cleared };
  },
};
