// Opens pages of a service in Chromium, cold and warm, over a connection with a delay: node page.mjs MODULES URL LATENCY_MS
// One line of JSON: by page and cache, how many requests, bytes and milliseconds until nothing more is loaded.

import { createRequire } from "node:module";

const [modules, url, latency] = process.argv.slice(2);
const { chromium } = createRequire(`${modules}/`)("playwright-core");
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
const PAGES = ["overview", "map", "photographs", "photograph", "sweeps", "compare", "predictions"];
const home = new URL(".", url).href;
const QUIET_MS = 400; // without a request: then all is there

/** What loading an address takes of the connection; answers that the browser kept count for nothing. */
async function visit(page, session, address) {
  const seen = { requests: 0, kilobytes: 0, milliseconds: 0 },
    started = performance.now();
  let open = 0,
    last = started;
  const sizes = [];
  const began = request => {
    if (request.url().startsWith("data:")) return;
    open++;
  };
  const ended = request => {
    if (request.url().startsWith("data:")) return;
    open--;
    last = performance.now();
    sizes.push(request.sizes().catch(() => null));
  };
  const answered = ({ response }) => {
    if (!response.url.startsWith("data:") && !response.fromDiskCache) seen.requests++;
  };
  session.on("Network.responseReceived", answered);
  page.on("request", began).on("requestfinished", ended).on("requestfailed", ended);
  await page.goto(address);
  while (open > 0 || performance.now() - last < QUIET_MS) await page.waitForTimeout(20);
  session.off("Network.responseReceived", answered);
  page.off("request", began).off("requestfinished", ended).off("requestfailed", ended);
  const all = await Promise.all(sizes);
  seen.kilobytes = all.reduce((sum, each) => sum + (each ? each.responseBodySize + each.responseHeadersSize : 0), 0) / 1e3;
  seen.milliseconds = last - started;
  return seen;
}

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: FLAGS }),
  found = {};
for (const name of PAGES) {
  const context = await browser.newContext({ viewport: { width: 1400, height: 900 } }), // with a cache of its own
    page = await context.newPage();
  await page.goto(`${home}healthz`); // a connection
  await context.request.get(url); // a cookie for the token
  const session = await context.newCDPSession(page);
  await session.send("Network.enable");
  await session.send("Network.emulateNetworkConditions", {
    offline: false,
    latency: Number(latency),
    downloadThroughput: -1,
    uploadThroughput: -1,
  });
  const address = name === "overview" ? home : `${home}?page=${name}`;
  const cold = await visit(page, session, address);
  await page.goto("about:blank");
  found[name] = { cold, warm: await visit(page, session, address) };
  await context.close();
}
await browser.close();
console.log(JSON.stringify(found));
