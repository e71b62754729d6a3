// Elements and texts. What comes from a model or a server gets in as text nodes alone.

// make("p", {class: "x", onclick: f}, "text", child): attributes, properties of events, children.
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

export const byId = (id) => document.getElementById(id);

const said = { timer: 0, words: [] };

// For those who listen: starts, ends and errors, never tokens. What is said within a moment is
// said together, or the last would silence the others.
export function announce(words) {
  said.words.push(words);
  clearTimeout(said.timer);
  said.timer = setTimeout(() => {
    byId("announcer").textContent = said.words.join(" ");
    said.words = [];
  }, 150);
}

// A button that says for a moment that it did its work.
export async function copy(button, text) {
  const label = button.dataset.label ?? button.textContent;
  button.dataset.label = label;
  let word = "Copied";
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    word = copyByHand(text) ? "Copied" : "Not allowed";
  }
  button.textContent = word;
  announce(`${word}.`);
  setTimeout(() => (button.textContent = label), 1500);
}

// Over plain HTTP from another machine browsers have no clipboard API.
function copyByHand(text) {
  const before = document.activeElement;
  const area = make("textarea", { class: "unseen", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  before?.focus();
  return done;
}

export function stored(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(`mlx-spec.${name}`)) ?? fallback;
  } catch {
    return fallback;
  }
}

export function store(name, value) {
  try {
    localStorage.setItem(`mlx-spec.${name}`, JSON.stringify(value));
  } catch {
    // Storage is forbidden or full: it lasts as long as the page.
  }
}
