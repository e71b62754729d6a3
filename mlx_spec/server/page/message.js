// One message in a conversation: a person's, or an answer that grows token by token.

import { copy, make } from "./dom.js";
import { seen } from "./drafters.js";
import { Flow } from "./flow.js";
import { count, decimal, missing, percent, plural, seconds, shown } from "./words.js";

export function question(text, onEdit) {
  const actions = make("div", { class: "actions" }, make("button", { type: "button", class: "quiet", onclick: onEdit }, "Edit"));
  const body = make("div", { class: "text", dir: "auto" }, shown(text));
  return make("article", { class: "message question", "aria-label": "You" }, body, actions);
}

// Runs before the next frame; a page that nobody sees has none.
const soon = (work) => (document.hidden ? setTimeout(work, 250) : requestAnimationFrame(work));

const ENDS = { length: "cut at the token limit", tool_calls: "calls a tool", content_filter: "cut by a filter" };

export class Answer {
  text = "";
  #waiting = [];
  #begun = performance.now();
  #first = null;
  #last = null;
  #tokens = 0;
  #drafted = new Map();
  #usage = null;

  constructor({ onAgain, onGrow }) {
    this.onGrow = onGrow;
    this.body = make("div", { class: "text", dir: "auto" });
    this.flow = new Flow(this.body);
    this.note = make("p", { class: "note", hidden: true });
    this.figures = make("span");
    this.twin = make("span", { class: "twin" });
    const button = (label, onclick) => make("button", { type: "button", class: "quiet", onclick }, label);
    this.copy = button("Copy", (event) => copy(event.target, this.text));
    this.again = button("Again", onAgain);
    this.actions = make("div", { class: "actions", hidden: true }, this.copy, this.again);
    this.foot = make("div", { class: "foot" }, make("p", { class: "figures" }, this.figures, this.twin), this.actions);
    this.element = make("article", { class: "message answer", "aria-label": "Answer", "aria-busy": "true" });
    this.element.append(this.body, this.note, this.foot);
  }

  get begun() {
    return this.#first !== null;
  }

  // A piece of the stream; it is shown with all others of its frame.
  take({ text, reasoning, counts, drafter, usage, finish }) {
    if (usage) this.#usage = usage;
    if (finish) this.finish = finish;
    if (counts || reasoning) {
      this.#last = performance.now();
      this.#first ??= this.#last;
      this.#tokens += 1;
      if (drafter) {
        if (!this.#drafted.has(drafter)) seen(drafter);
        this.#drafted.set(drafter, (this.#drafted.get(drafter) ?? 0) + 1);
      }
    }
    if (!text && !reasoning) return;
    this.text += text;
    if (!this.#waiting.length) soon(() => this.#show());
    this.#waiting.push({ text, reasoning, drafter });
  }

  #show() {
    if (!this.#waiting.length) return;
    for (const { text, reasoning, drafter } of this.#waiting) {
      if (reasoning) this.#thinking().add(reasoning, drafter);
      if (text) this.flow.add(text, drafter);
    }
    this.#waiting = [];
    this.figures.textContent = this.#live();
    this.onGrow();
  }

  #thinking() {
    if (!this.thought) {
      const place = make("div", { class: "text thought", dir: "auto" });
      this.thought = new Flow(place);
      this.details = make("details", { open: true }, make("summary", {}, "Thinking"), place);
      this.body.before(this.details);
    }
    return this.thought;
  }

  #rate() {
    const later = this.#last - this.#first;
    return later > 0 ? ((this.#tokens - 1) * 1000) / later : null;
  }

  #live() {
    return `${plural(this.#tokens, "token")} \u00b7 ${decimal(this.#rate())} tok/s`;
  }

  #end() {
    const tokens = this.#usage?.completion_tokens ?? this.#tokens;
    const parts = [plural(tokens, "token")];
    if (!missing(this.#rate())) parts.push(`${decimal(this.#rate())} tok/s`);
    if (this.begun) parts.push(`first after ${seconds((this.#first - this.#begun) / 1000)}`);
    const { accepted_prediction_tokens: accepted, rejected_prediction_tokens: rejected } =
      this.#usage?.completion_tokens_details ?? {};
    const drafted = accepted ?? [...this.#drafted.values()].reduce((sum, n) => sum + n, 0);
    if (drafted) parts.push(`${percent(drafted / tokens)} from drafts${this.#split()}`);
    if (accepted + rejected) parts.push(`${percent(accepted / (accepted + rejected))} of guesses accepted`);
    if (ENDS[this.finish]) parts.push(ENDS[this.finish]);
    return parts;
  }

  #split() {
    if (this.#drafted.size < 2) return "";
    return ` (${[...this.#drafted].map(([name, n]) => `${name} ${count(n)}`).join(", ")})`;
  }

  // Something besides the text: a wait, or what went wrong.
  say(words, kind = "wait") {
    this.note.hidden = !words;
    this.note.dataset.kind = kind;
    this.note.textContent = words;
  }

  // No piece follows. Returns the end in words.
  close(ending = "") {
    this.#show();
    this.flow.end();
    this.thought?.end();
    const parts = this.#end();
    if (ending === "stopped") parts.push("stopped");
    this.figures.textContent = this.begun || ending !== "failed" ? parts.join(" \u00b7 ") : "";
    if (!this.text && !this.thought && this.finish) this.say("The model ended at once, without a word.");
    this.copy.hidden = !this.text;
    this.actions.hidden = false;
    this.element.removeAttribute("aria-busy");
    if (this.thought && this.text) this.details.open = false;
    return parts.join(", ");
  }
}
