// Where a prompt is written: Enter sends, and the button that sends is the one that stops.

import { make } from "./dom.js";

export class Composer {
  #history = [];

  // `onSend(text)` says whether it took the text.
  constructor({ label, onSend, onStop }) {
    this.onSend = onSend;
    this.onStop = onStop;
    this.area = make("textarea", {
      rows: 1,
      "aria-label": label,
      placeholder: "Write a prompt",
      enterkeyhint: "send",
      oninput: () => this.#fit(),
      onkeydown: (event) => this.#key(event),
    });
    this.button = make("button", { type: "submit", class: "primary send" }, "Send");
    this.element = make(
      "form",
      {
        class: "composer",
        onsubmit: (event) => {
          event.preventDefault();
          if (this.busy) this.onStop();
          else this.send();
        },
      },
      this.area,
      this.button,
    );
  }

  get text() {
    return this.area.value;
  }

  set text(value) {
    this.area.value = value;
    this.#fit();
  }

  get busy() {
    return this.button.dataset.state === "busy";
  }

  set busy(value) {
    this.button.dataset.state = value ? "busy" : "";
    this.button.textContent = value ? "Stop" : "Send";
  }

  focus() {
    this.area.focus();
    this.area.setSelectionRange(this.text.length, this.text.length);
  }

  send() {
    const { text } = this;
    if (!text.trim() || this.busy || !this.onSend(text)) return;
    this.#history.push(text);
    this.text = "";
  }

  #key(event) {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      this.send();
    } else if (event.key === "ArrowUp" && !event.altKey && !this.text && this.#history.length) {
      event.preventDefault();
      this.text = this.#history.at(-1);
    }
  }

  // As high as its text, up to what style.css allows.
  #fit() {
    this.area.style.height = "auto";
    this.area.style.height = `${this.area.scrollHeight + 2}px`;
  }
}
