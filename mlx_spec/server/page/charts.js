// Small charts of the last two minutes, as SVG: it follows the theme by itself, is sharp at any
// size, and is an image with a sentence for those who listen.

import { byId, make } from "./dom.js";
import { bytes, count, decimal, duration, missing, percent, seconds } from "./words.js";

const SPAN = 120_000;
const [WIDTH, HEIGHT] = [120, 36];
const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

class Chart {
  #points = []; // {at, value}; a value may be missing: a gap

  // `most`: the scale's end; without one the highest point.
  constructor({ label, unit = "", write, most = null }) {
    Object.assign(this, { label, unit, write, most });
    this.area = svg("path", { class: "area" });
    this.line = svg("path", { class: "line" });
    this.rule = svg("path", { class: "rule" });
    this.picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.picture.append(this.area, this.line, this.rule);
    this.value = make("strong");
    this.side = make("span", { class: "of" });
    this.element = make("figure", {}, make("figcaption", {}, label), make("p", {}, this.value, this.side), this.picture);
    this.picture.addEventListener("pointermove", (event) => this.#point(event));
    this.picture.addEventListener("pointerleave", () => this.#point(null));
  }

  add(value, limit, at) {
    this.#points.push({ at, value: missing(value) ? null : value });
    while (this.#points[0].at < at - SPAN) this.#points.shift();
    this.limit = limit;
    this.#draw(at);
    if (!this.pointed) this.#show(this.#points.at(-1));
  }

  // The server may be another one now.
  gap(at) {
    if (this.#points.length) this.add(null, this.limit, at);
  }

  #known() {
    return this.#points.filter((point) => point.value !== null);
  }

  #show({ value, at }, now = at) {
    const ago = Math.round((now - at) / 1000);
    this.value.textContent = this.write(value);
    const of = missing(this.limit) ? this.unit : `of ${this.write(this.limit)}`;
    this.side.textContent = ` ${ago ? `${ago} s ago` : missing(value) ? "" : of}`;
  }

  #draw(now) {
    const known = this.#known();
    const top = this.most ?? (Math.max(...known.map(({ value }) => value), 0) * 1.1 || 1);
    const x = ({ at }) => (WIDTH - ((now - at) / SPAN) * WIDTH).toFixed(2);
    const y = ({ value }) => (HEIGHT - 1 - (Math.min(value / top, 1) * (HEIGHT - 3))).toFixed(2);
    let [line, area, run] = ["", "", []];
    for (const point of [...this.#points, { value: null }]) {
      if (point.value !== null) run.push(`${x(point)} ${y(point)}`);
      else if (run.length) {
        const path = run.join("L");
        const [first, last] = [run[0], run.at(-1)].map((one) => one.split(" ")[0]);
        line += `M${path}${run.length === 1 ? "h.01" : ""}`;
        area += `M${first} ${HEIGHT}L${path}L${last} ${HEIGHT}Z`;
        run = [];
      }
    }
    this.line.setAttribute("d", line);
    this.area.setAttribute("d", area);
    const [last, high] = [this.#points.at(-1).value, known.length ? Math.max(...known.map((p) => p.value)) : null];
    const words = `${this.label}: ${this.write(last)} ${this.unit} now, ${this.write(high)} at most in two minutes`;
    this.picture.setAttribute("aria-label", words);
  }

  #point(event) {
    this.pointed = event !== null && this.#points.length > 0;
    this.rule.setAttribute("d", "");
    if (!this.#points.length) return;
    const latest = this.#points.at(-1);
    if (!this.pointed) {
      this.#show(latest);
      return;
    }
    const box = this.picture.getBoundingClientRect();
    const at = latest.at - (1 - (event.clientX - box.left) / box.width) * SPAN;
    const near = this.#points.reduce((a, b) => (Math.abs(b.at - at) < Math.abs(a.at - at) ? b : a));
    const place = WIDTH - ((latest.at - near.at) / SPAN) * WIDTH;
    this.rule.setAttribute("d", `M${place} 0V${HEIGHT}`);
    this.#show(near, latest.at);
  }
}

// What each chart shows of the statistics: [its value, its limit].
const CHARTS = [
  [{ label: "Throughput", unit: "tok/s", write: decimal }, (s) => [s.throughput_tps, null]],
  [{ label: "Acceptance", write: percent, most: 1 }, (s) => [s.acceptance_rate, null]],
  [{ label: "Draft tokens a step", write: decimal }, (s) => [s.draft_tokens_per_step, null]],
  [{ label: "Rows", write: count }, (s) => [s.rows?.running, s.rows?.size]],
  [{ label: "K/V memory", write: bytes }, (s) => [s.kv?.bytes, s.kv?.bytes_limit]],
  [{ label: "Queue", write: count }, (s) => [s.queue?.waiting, s.queue?.limit]],
];

const FACTS = [
  ["First token", (s) => spread(s.ttft_ms)],
  ["Between tokens", (s) => spread(s.itl_ms)],
  ["Prompt tokens reused", (s) => count(s.prefix?.reused_tokens)],
  ["Requests done", (s) => count(s.requests?.finished)],
  ["Refused", (s) => count(Object.values(s.requests?.refused ?? {}).reduce((sum, n) => sum + n, 0))],
  ["Up for", (s) => duration(s.uptime_s)],
];

// Milliseconds: the middle, and what one in twenty exceeds.
const spread = (of) => (missing(of?.p50) ? "\u2013" : `${seconds(of.p50 / 1000)}, p95 ${seconds(of.p95 / 1000)}`);

export class Charts {
  constructor() {
    this.charts = CHARTS.map(([look, read]) => [new Chart(look), read]);
    byId("charts").append(...this.charts.map(([chart]) => chart.element));
    this.facts = FACTS.map(([label, read]) => [make("dd", {}, "\u2013"), label, read]);
    byId("facts").append(...this.facts.map(([value, label]) => make("div", {}, make("dt", {}, label), value)));
  }

  add(figures) {
    const now = performance.now();
    for (const [chart, read] of this.charts) chart.add(...read(figures), now);
    for (const [value, , read] of this.facts) value.textContent = read(figures);
  }

  gap() {
    for (const [chart] of this.charts) chart.gap(performance.now());
  }
}
