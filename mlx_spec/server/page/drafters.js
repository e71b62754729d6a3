// Drafters: a colour and a line of each, and the legend. A colour is a number here; style.css says
// which, and gives each an underline of its own for those who do not tell the colours apart.

import { byId, make, store, stored } from "./dom.js";
import { count, percent } from "./words.js";

const KNOWN = {
  model: [1, "the draft model"],
  ngram: [2, "what followed the same words earlier in the text"],
  head: [3, "a head that reads the model’s own states"],
  self: [4, "the model’s own first layers"],
  lookahead: [5, "n-grams gathered from guesses in parallel"],
  forced: [6, "the only token that the format allows"],
  predicted: [7, "the predicted output that came with the request"],
};
const HUES = 8;
const others = new Map();

// 1 to 7 for those we know; all others share what is left, in the order in which they came.
export function hue(name) {
  if (Object.hasOwn(KNOWN, name)) return KNOWN[name][0];
  if (!others.has(name)) others.set(name, ((HUES - 1 + others.size) % HUES) + 1);
  return others.get(name);
}

const items = new Map();

function itemOf(name) {
  if (!items.has(name)) {
    const rate = make("span", { class: "rate" });
    const about = Object.hasOwn(KNOWN, name) ? KNOWN[name][1] : "a drafter";
    const item = make("li", { title: about }, make("span", { class: "draft", "data-hue": hue(name) }, name), rate);
    items.set(name, { item, rate, about });
    byId("legend").append(item);
  }
  return items.get(name);
}

// `figures`: the server's counts by drafter, {name: {drafted, accepted, acceptance_rate}}.
export function showLegend(figures) {
  for (const [name, { drafted, accepted, acceptance_rate: rate }] of Object.entries(figures ?? {})) {
    const { item, rate: place, about } = itemOf(name);
    place.textContent = drafted ? percent(rate) : "";
    item.title = drafted ? `${about}: ${count(accepted)} of ${count(drafted)} guesses accepted` : about;
  }
}

// A drafter that an answer names before the figures do.
export const seen = (name) => void itemOf(name);

export function wireTint() {
  const box = byId("tint");
  box.checked = stored("tint", true);
  const apply = () => document.documentElement.toggleAttribute("data-plain", !box.checked);
  box.addEventListener("change", () => {
    store("tint", box.checked);
    apply();
  });
  apply();
}
