// The page put together: who hears of what.

import { key, request } from "./api.js";
import { Board } from "./board.js";
import { Charts } from "./charts.js";
import { announce, byId } from "./dom.js";
import { showLegend, wireTint } from "./drafters.js";
import { wireKeys } from "./keys.js";
import { Live } from "./live.js";
import { wireSettings } from "./settings.js";
import { shown } from "./words.js";

const live = new Live();
const charts = new Charts();
let model = null;

const side = {
  narrow: matchMedia("(max-width: 56rem)"),
  get open() {
    return !byId("side").hidden;
  },
  set open(open) {
    byId("side").hidden = !open;
    byId("side-button").setAttribute("aria-expanded", open);
    document.documentElement.toggleAttribute("data-side", open);
  },
  toggle() {
    this.open = !this.open;
    if (this.narrow.matches) byId(this.open ? "side-close" : "side-button").focus();
  },
};

const board = new Board({
  model: () => model,
  needKey: askKey,
  showParameters: () => (side.open = true),
});

// The key ----------------------------------------------------------------------------------------

function askKey(words) {
  const dialog = byId("key-dialog");
  byId("key-words").textContent = shown(words);
  byId("key-button").hidden = false;
  if (dialog.open || byId("help-dialog").open) return;
  byId("key").value = "";
  byId("key-forget").hidden = !key.get();
  dialog.showModal();
}

function wireKeyDialog() {
  const dialog = byId("key-dialog");
  const use = (value) => {
    key.set(value);
    dialog.close();
    live.anew();
  };
  dialog.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const value = byId("key").value.trim();
    const odd = /[^\x20-\x7e]/.test(value) ? "A key has letters, digits and signs of ASCII alone." : "";
    byId("key").setCustomValidity(odd);
    if (byId("key").reportValidity() && value) use(value);
  });
  byId("key-forget").addEventListener("click", () => use(""));
  byId("key-cancel").addEventListener("click", () => dialog.close());
  byId("key-button").addEventListener("click", () => askKey("This server answers only those who have its key."));
  byId("key-button").hidden = !key.get();
}

// The server -------------------------------------------------------------------------------------

async function readModel() {
  try {
    const { data } = await (await request("/v1/models")).json();
    showModel(data?.[0]?.id);
  } catch {
    // The figures name it, too; and who asks without a name gets the one there is.
  }
}

function showModel(name) {
  if (typeof name !== "string" || name === model) return;
  model = name;
  byId("model").textContent = shown(name);
  byId("model").title = shown(name);
  document.title = `${shown(name)} \u00b7 mlx-spec`;
}

live.addEventListener("figures", ({ detail }) => {
  if (model === null) showModel(detail.model);
  charts.add(detail);
  showLegend(detail.drafters);
});

const SAID = { wait: "connecting", up: "connected", busy: "not ready", locked: "needs a key", refused: "refused", gone: "gone" };

live.addEventListener("state", ({ detail: { state, words, before } }) => {
  byId("connection").dataset.state = state;
  byId("connection-words").textContent = SAID[state];
  const trouble = ["busy", "refused", "gone"].includes(state);
  byId("banner").hidden = !trouble;
  byId("banner").textContent = trouble ? shown(words) : "";
  if (state === "up") {
    readModel();
    if (before === "gone" || before === "busy") announce("The server is back.");
  } else {
    charts.gap();
  }
  if (state === "locked") askKey(words);
});

// The rest ---------------------------------------------------------------------------------------

byId("side-button").addEventListener("click", () => side.toggle());
byId("side-close").addEventListener("click", () => side.toggle());
side.open = !side.narrow.matches;
side.narrow.addEventListener("change", ({ matches }) => (side.open = !matches));

wireTint();
wireSettings(() => board.panes[0].body());
wireKeyDialog();
wireKeys({ board, side });
live.start();
if (!side.narrow.matches) board.focus(0);
