// node page_picture.mjs URL FILE: a picture of one view of the page. tools/pictures.py runs it.

import { chromium } from "playwright-core";

// without these Chromium asks for its maker's hosts at every start
const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
const VIEW = "page=photograph&layer=similar&patch=4,9";

const [url, file] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: FLAGS });
const page = await browser.newPage({ viewport: { width: 1200, height: 800 } });

await page.goto(url); // a cookie for the token
await page.goto(new URL(`./?${VIEW}`, new URL(url).origin).href);
await page.waitForFunction(() => {
  const loaded = [...document.images].every(image => image.complete || image.loading === "lazy");
  return loaded && document.querySelector("main h1") && !document.querySelector("[aria-busy], .loading");
});
await page.waitForTimeout(500); // canvases are drawn in the next frames

await page.screenshot({ path: file, type: "jpeg", quality: 80 });
await browser.close();
