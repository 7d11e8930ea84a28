// What claims are made of: pages in Chromium that note noise, and what is seen on them.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

// without these Chromium asks for its maker's hosts at every start
export const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
export const WIDE = { width: 1400, height: 900 },
  NARROW = { width: 390, height: 844 };

export const [claim, url, word] = process.argv.slice(2);
const { origin } = new URL(url);
export const home = new URL(".", url).href;
export const noise = [];

export async function open(browser, query, options = {}) {
  const page = await listened(browser, options);
  await page.goto(url); // a cookie for the token
  await arrive(page, `/?${query}`);
  return page;
}

/** A page that is at no address yet, and notes noise. */
export async function listened(browser, options = {}) {
  const context = await browser.newContext({ viewport: WIDE, ...options });
  context.on("request", request => new URL(request.url()).origin === origin || noise.push(`asked ${request.url()}`));
  context.on("console", message => noise.push(`${message.type()}: ${message.text()}`));
  context.on("weberror", error => noise.push(String(error.error())));
  return context.newPage();
}

export async function arrive(page, address) {
  await page.goto(home + address.replace(/^\//, ""));
  await drawn(page);
}

export async function drawn(page) {
  await page.waitForFunction(() => {
    const loaded = [...document.images].every(image => image.complete || image.loading === "lazy");
    return loaded && document.querySelector("main h1") && !document.querySelector("[aria-busy], .loading");
  });
  await page.waitForTimeout(100); // canvases are drawn in the next frame
}

/** Chromium notes every answer that is an error. */
export const expect = status => noise.splice(0, noise.length, ...noise.filter(line => !line.includes(String(status))));

/** What axe-core finds on the page as it stands. */
export async function violations(page) {
  await page.evaluate(await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8"));
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  return violations.filter(each => ["serious", "critical"].includes(each.impact));
}

/** How many pixels the page is wider than its window; a scrollbar takes some of that. */
export const beyond = page => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);

export const title = page => page.locator("main h1").textContent();
export const pixels = (page, selector) =>
  page
    .locator(selector)
    .first()
    .evaluate(canvas => canvas.toDataURL());

/** Move the mouse onto a point of the chart: the keyboard goes to one, and its card hangs at one of its corners beside it. */
export async function ontoPoint(page) {
  await page.locator(".scatter").press("ArrowRight");
  const { x, y, width, height } = await page.locator(".tip").boundingBox(),
    named = await page.locator(".tip strong").textContent();
  for (const at of [
    [x - 14, y - 14],
    [x + width + 14, y - 14],
    [x - 14, y + height + 14],
    [x + width + 14, y + height + 14],
  ]) {
    await page.mouse.move(...at);
    if ((await page.locator(".on-point .tip strong").count()) && named === (await page.locator(".tip strong").textContent()))
      return at;
  }
  throw new Error(`no point beside the card of ${named}`);
}

