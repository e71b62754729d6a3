// The conversations side by side: up to six, which the server runs as one batch.

import { Composer } from "./composer.js";
import { announce, byId } from "./dom.js";
import { Pane } from "./pane.js";

const MOST = 6;

export class Board {
  panes = [];

  // host: {model(), needKey(words), showParameters()}
  constructor(host) {
    this.host = host;
    this.shared = new Composer({
      label: "Prompt for all conversations",
      onSend: (text) => this.#askAll(text),
      onStop: () => this.stopAll(),
    });
    byId("shared").append(this.shared.element);
    byId("add").addEventListener("click", () => this.add().focusPrompt());
    byId("run-all").addEventListener("click", () => this.runAll());
    byId("stop-all").addEventListener("click", () => this.stopAll());
    byId("same").addEventListener("change", () => this.#changed());
    this.add();
  }

  get same() {
    return byId("same").checked && this.panes.length > 1;
  }

  get busy() {
    return this.panes.some((pane) => pane.busy);
  }

  add() {
    if (this.panes.length < MOST) {
      const pane = new Pane({ ...this.host, changed: () => this.#changed(), close: (one) => this.#close(one) });
      this.panes.push(pane);
      byId("board").append(pane.element);
      this.#changed();
    }
    return { focusPrompt: () => this.focus(this.panes.length - 1) };
  }

  #close(pane) {
    pane.stop();
    const place = this.panes.indexOf(pane);
    this.panes.splice(place, 1);
    pane.element.remove();
    this.#changed();
    this.focus(Math.min(place, this.panes.length - 1));
    announce(`Closed; ${this.panes.length} left.`);
  }

  focus(place) {
    const count = this.panes.length;
    (this.same ? this.shared : this.panes[(place + count) % count].composer).focus();
  }

  // To the prompt of a neighbour of the conversation that has the focus.
  move(step) {
    const at = this.panes.findIndex((pane) => pane.element.contains(document.activeElement));
    this.focus(at < 0 ? 0 : at + step);
  }

  // What is written in each, at once.
  runAll() {
    if (this.same) this.shared.send();
    else for (const pane of this.panes) pane.composer.send();
  }

  stopAll() {
    for (const pane of this.panes) pane.stop();
  }

  // Of answers to the same question: which say the same, whatever guessed for them.
  #compare() {
    this.panes.forEach(({ last }, place) => {
      if (!last) return;
      const same = (one) => one.last?.question === last.question && one.last.text === last.text;
      const first = last.text ? this.panes.findIndex(same) : place;
      last.answer.twin.textContent = first < place ? ` \u00b7 the same text as in ${first + 1}` : "";
    });
  }

  #askAll(text) {
    return this.panes.map((pane) => pane.ask(text)).some(Boolean);
  }

  #changed() {
    const several = this.panes.length > 1;
    this.panes.forEach((pane, place) => {
      pane.place(place + 1, several);
      pane.composer.element.hidden = this.same;
    });
    this.#compare();
    byId("board").dataset.count = this.panes.length;
    byId("same-label").hidden = byId("run-all").hidden = !several;
    byId("stop-all").hidden = !several || !this.busy;
    byId("add").disabled = this.panes.length >= MOST;
    byId("shared").hidden = !this.same;
    if (this.same) byId("run-all").hidden = true;
    this.shared.busy = this.busy;
  }
}
