// The keyboard, and the theme that one of its keys turns.

import { announce, byId } from "./dom.js";

const THEMES = { system: "light", light: "dark", dark: "system" };

function turnTheme() {
  const root = document.documentElement;
  const next = THEMES[root.dataset.theme ?? "system"];
  if (next === "system") delete root.dataset.theme;
  else root.dataset.theme = next;
  try {
    localStorage.setItem("mlx-spec.theme", next);
  } catch {
    // Storage is forbidden: it lasts as long as the page.
  }
  nameTheme();
  announce(`Theme: ${next}.`);
}

function nameTheme() {
  byId("theme-button").textContent = `Theme: ${document.documentElement.dataset.theme ?? "system"}`;
}

const writes = (element) => element.matches("input:not([type=checkbox]), textarea, select");

export function wireKeys({ board, side }) {
  byId("theme-button").addEventListener("click", turnTheme);
  byId("help-button").addEventListener("click", () => byId("help-dialog").showModal());
  nameTheme();
  const plain = {
    "/": () => board.focus(0),
    "+": () => board.add().focusPrompt(),
    p: () => side.toggle(),
    t: turnTheme,
    "?": () => byId("help-dialog").showModal(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || document.querySelector("dialog[open]")) return;
    const does = found(event, plain, { board, side });
    if (!does) return;
    event.preventDefault();
    does();
  });
}

function found(event, plain, { board, side }) {
  const { key, altKey, target } = event;
  const command = event.ctrlKey || event.metaKey;
  if (key === "Escape") return escaped({ board, side });
  if (key === "Enter" && command) return () => board.runAll();
  if (altKey && !command && key === "ArrowUp") return () => board.move(-1);
  if (altKey && !command && key === "ArrowDown") return () => board.move(1);
  if (command || altKey || writes(target)) return null;
  return plain[key.toLowerCase()] ?? null;
}

function escaped({ board, side }) {
  if (side.narrow.matches && side.open) return () => side.toggle();
  return board.busy ? () => board.stopAll() : null;
}
