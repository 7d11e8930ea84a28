// The page that asks for the token: the address `/?token=` turns a right one into a cookie, and what was asked for opens.

import { here } from "./api.js";

const form = document.querySelector("form"),
  told = document.querySelector("[role=alert]"),
  asked = new URLSearchParams(location.search);

/** The token in what was typed or pasted, which may be the whole address. */
const tokenIn = text => new URLSearchParams(text.split("?")[1] ?? "").get("token") ?? text.trim();

function tell(text) {
  told.textContent = text;
  told.hidden = false;
}

/** Why there is still no way in, or null where there is one. */
async function refusal(token) {
  const url = `/?${new URLSearchParams({ token })}`,
    headers = { Accept: "application/json" }; // else a refusal would be this page again
  try {
    const answer = await fetch(here(url), { headers, credentials: "same-origin" });
    if (answer.ok) return null;
    if (answer.status !== 401) return `The server answered ${answer.status}. Try again in some seconds.`;
    return answer.redirected
      ? "The token is right, but this browser keeps no cookie of this page. Allow cookies for it."
      : "That is not this server's token.";
  } catch {
    return "The server does not answer. Is it still running?";
  }
}

form.addEventListener("submit", async event => {
  event.preventDefault();
  const problem = await refusal(tokenIn(form.token.value));
  if (problem) {
    tell(problem);
    form.token.select();
    return;
  }
  asked.delete("token"); // an old one, of the bookmark
  history.replaceState(null, "", `./?${asked}`);
  location.reload();
});

if (asked.has("token")) tell("The token in the address is not this server's.");
