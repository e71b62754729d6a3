// Numbers and texts as people read them.

// Control characters and those that turn the direction of what follows, which could disguise the
// page; tabs and new lines are layout, joiners belong to letters and emoji.
// eslint-disable-next-line no-control-regex
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb]/g;

function visible(character) {
  const code = character.codePointAt(0);
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  if (code === 0x7f) return "\u2421";
  return `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
}

// A model's text with every character to be seen.
export const shown = (text) => text.replaceAll("\r\n", "\n").replace(HIDDEN, visible);

export const missing = (value) => value === null || value === undefined || Number.isNaN(value);

const orDash = (write) => (value) => (missing(value) ? "\u2013" : write(value));

export const count = orDash((value) => Math.round(value).toLocaleString("en"));

export const percent = orDash((value) => `${Math.round(value * 100)}%`);

export const decimal = orDash((value) => value.toFixed(value < 10 ? 1 : 0));

export const seconds = orDash((value) =>
  value < 0.9995 ? `${Number((value * 1000).toPrecision(3)).toFixed(value < 0.01 ? 1 : 0)} ms` : `${value.toFixed(value < 10 ? 1 : 0)} s`,
);

export const bytes = orDash((value) => {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) [value, unit] = [value / 1000, unit + 1];
  return `${Number(value.toFixed(unit && value < 10 ? 1 : 0))} ${units[unit]}`;
});

export function duration(total) {
  if (missing(total)) return "\u2013";
  const [hours, minutes] = [Math.floor(total / 3600), Math.floor(total / 60) % 60];
  if (hours >= 48) return `${Math.floor(hours / 24)} days`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min` : `${Math.floor(total)} s`;
}

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${Math.round(n) === 1 ? one : many}`;
