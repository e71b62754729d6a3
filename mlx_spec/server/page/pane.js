// One conversation: its messages, its prompt, and the one answer that may be under way.

import { chat, Fault } from "./api.js";
import { Composer } from "./composer.js";
import { announce, copy, make } from "./dom.js";
import { Answer, question } from "./message.js";
import { invalid, ownFields, requestBody } from "./settings.js";

const MOST_TRIES = 100;
const EXAMPLES = [
  "Explain to a child why the sky is blue.",
  "Write a Python function that parses one line of CSV.",
  "Say it three times: a cat sat on a mat, and the mat was flat.",
];

export class Pane {
  last = null; // of the answer that is complete: {question, text, answer}
  #entries = []; // of each message: {role, content, element}
  #abort = null;
  #number = 0;
  #atEnd = true; // as the reader scrolled last

  // host: {model(), needKey(words), changed(), close(pane)}
  constructor(host) {
    this.host = host;
    this.title = make("h2");
    this.own = ownFields(crypto.randomUUID?.() ?? Math.random());
    this.composer = new Composer({ label: "Prompt", onSend: (text) => this.ask(text), onStop: () => this.stop() });
    this.log = make("div", { class: "log", role: "log", "aria-live": "off", tabindex: "0" });
    this.log.addEventListener("scroll", () => {
      this.#atEnd = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 40;
    });
    this.empty = this.#examples();
    this.log.append(this.empty);
    this.element = make("section", { class: "pane" }, this.#head(), this.own.box, this.log, this.composer.element);
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.stop();
    });
  }

  #head() {
    const button = (label, attributes, ...rest) => make("button", { type: "button", class: "quiet", ...attributes }, label, ...rest);
    const fold = () => this.#showOwn(this.own.box.hidden);
    this.opener = button("Options", { "aria-expanded": "false", "aria-controls": this.own.box.id, onclick: fold });
    this.closer = button("Close", { onclick: () => this.host.close(this) });
    this.exporter = button("Copy all", { onclick: (event) => copy(event.target, JSON.stringify(this.messages, null, 1)) });
    this.cleaner = button("Clear", { onclick: () => this.clear() });
    this.exporter.hidden = this.cleaner.hidden = true;
    return make("header", { class: "pane-head" }, this.title, this.opener, this.exporter, this.cleaner, this.closer);
  }

  #showOwn(shown) {
    this.own.box.hidden = !shown;
    this.opener.setAttribute("aria-expanded", shown);
  }

  #forgetOwn() {
    this.#showOwn(false);
    for (const field of this.own.fields) field.value = "";
  }

  #examples() {
    const fill = (text) => () => {
      this.composer.text = text;
      this.composer.focus();
    };
    const buttons = EXAMPLES.map((text) => make("button", { type: "button", class: "example", onclick: fill(text) }, text));
    return make("div", { class: "empty" }, make("p", {}, "Ask the model something, or begin with one of these."), ...buttons);
  }

  get busy() {
    return this.#abort !== null;
  }

  // What is said to the model: a question that got no answer is not part of it.
  get messages() {
    const unanswered = (place) => this.#entries[place + 1]?.content === "";
    const kept = this.#entries.filter((one, place) => one.content && !(one.role === "user" && unanswered(place)));
    return kept.map(({ role, content }) => ({ role, content }));
  }

  // Its place among several; alone it needs no name and no parameters of its own.
  place(number, several) {
    this.#number = number;
    this.title.textContent = `${number}`;
    this.title.hidden = this.closer.hidden = this.opener.hidden = !several;
    if (!several) this.#forgetOwn();
    this.element.setAttribute("aria-label", `Conversation ${number}`);
    this.log.setAttribute("aria-label", `Messages of conversation ${number}`);
    this.composer.area.setAttribute("aria-label", `Prompt of conversation ${number}`);
    this.closer.setAttribute("aria-label", `Close conversation ${number}`);
    this.cleaner.setAttribute("aria-label", `Clear conversation ${number}`);
  }

  body() {
    const text = this.composer.text.trim();
    const next = text ? [{ role: "user", content: text }] : [];
    return requestBody(this.host.model(), [...this.messages, ...next], this.own.fields);
  }

  // Send a message; false where it cannot be sent now.
  ask(text) {
    if (this.busy || !this.#valid()) return false;
    this.empty.remove();
    const entry = { role: "user", content: text };
    entry.element = question(text, () => this.#edit(entry));
    this.#add(entry);
    this.#run();
    return true;
  }

  #valid() {
    const field = invalid(this.own.fields);
    if (!field) return true;
    if (this.own.fields.includes(field)) this.#showOwn(true);
    else this.host.showParameters();
    field.reportValidity();
    return false;
  }

  #add(entry) {
    this.#entries.push(entry);
    this.log.append(entry.element);
    this.#follow(true);
  }

  stop() {
    this.#abort?.abort();
  }

  clear() {
    this.stop();
    this.#cut(0);
    this.composer.focus();
    announce(`Conversation ${this.#number} is empty.`);
  }

  // Everything from this entry on is forgotten.
  #cut(from) {
    this.last = null;
    for (const { element } of this.#entries.splice(from)) element.remove();
    if (!this.#entries.length) this.log.append(this.empty);
    this.#changed();
  }

  #edit(entry) {
    if (this.busy) return;
    this.#cut(this.#entries.indexOf(entry));
    this.composer.text = entry.content;
    this.composer.focus();
  }

  #again(entry) {
    if (this.busy || !this.#valid()) return;
    this.#cut(this.#entries.indexOf(entry));
    this.#run();
    this.composer.focus();
  }

  async #run() {
    const entry = { role: "assistant", content: "" };
    const answer = new Answer({ onAgain: () => this.#again(entry), onGrow: () => this.#follow() });
    const abort = new AbortController();
    entry.element = answer.element;
    const body = requestBody(this.host.model(), this.messages, this.own.fields);
    this.#add(entry);
    this.last = null;
    this.#abort = abort;
    this.#changed();
    const ending = await this.#stream(answer, body, abort.signal);
    const words = answer.close(ending);
    entry.content = answer.text;
    this.#abort = null;
    this.#changed();
    this.#follow();
    this.last = { question: this.#question(entry), text: answer.text, answer };
    this.host.changed();
    if (ending !== "failed") announce(`Answer ${this.#number} ${ending || "is complete"}: ${words}.`);
  }

  #question(entry) {
    return this.#entries[this.#entries.indexOf(entry) - 1]?.content;
  }

  // All pieces into the answer, again while the server is full. Returns how it ended otherwise
  // than well: "", "stopped" or "failed".
  async #stream(answer, body, signal) {
    announce(`Answer ${this.#number} begins.`);
    for (let tries = 1; ; tries += 1) {
      try {
        for await (const piece of chat(body, signal)) answer.take(piece);
        return "";
      } catch (error) {
        if (signal.aborted) return "stopped";
        const again = error instanceof Fault && error.retry !== null && !answer.begun && tries < MOST_TRIES;
        if (!again) return this.#failed(answer, error);
        await countdown(error, answer, signal);
        if (signal.aborted) return "stopped";
      }
    }
  }

  #failed(answer, error) {
    const words = error instanceof Fault ? error.message : `The page cannot read the answer: ${error.message}`;
    answer.say(answer.begun ? `${words} The answer ends here.` : words, "fault");
    announce(`Answer ${this.#number} failed: ${words}`);
    if (error.status === 401) this.host.needKey(words);
    return "failed";
  }

  #changed() {
    this.composer.busy = this.busy;
    this.element.toggleAttribute("data-busy", this.busy);
    this.exporter.hidden = this.cleaner.hidden = !this.#entries.length;
    this.host.changed();
  }

  // Keep the end in sight unless the reader went back.
  #follow(always = false) {
    const { log } = this;
    if (always || this.#atEnd) log.scrollTop = log.scrollHeight;
  }
}

// Seconds until the next try, counted aloud for the eye only.
async function countdown(error, answer, signal) {
  for (let left = Math.ceil(error.retry); left > 0 && !signal.aborted; left -= 1) {
    answer.say(`${error.message} Trying again in ${left} s.`);
    await pause(1000, signal);
  }
  answer.say("");
}

function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
