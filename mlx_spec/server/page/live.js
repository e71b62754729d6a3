// What the server says of itself, once a second while the page is seen.

import { Fault, request } from "./api.js";

const EVERY = 1000;
const SLOWEST = 5000;
const PATIENCE = 10000;

// Events: "figures" (detail: the statistics), "state" (detail: {state, words}); a state is one of
// wait, up, busy (it takes no requests), locked (it wants a key), refused (it answers no page from
// here), gone.
export class Live extends EventTarget {
  state = "wait";
  #timer = 0;
  #misses = 0;
  #asking = false;
  #stale = false;

  start() {
    document.addEventListener("visibilitychange", () => this.soon());
    window.addEventListener("online", () => this.soon());
    this.soon();
  }

  // Ask now, whatever was planned.
  soon() {
    clearTimeout(this.#timer);
    if (!document.hidden && !this.#asking) this.#ask();
  }

  // With another key: what is known, and what is being asked, counts no more.
  anew() {
    Object.assign(this, { state: "wait", words: "" });
    this.#misses = 0;
    this.#stale = this.#asking;
    this.soon();
  }

  async #ask() {
    this.#asking = true;
    this.#stale = false;
    try {
      const response = await request("/v1/stats", { signal: AbortSignal.timeout(PATIENCE) });
      this.#heard(await response.json());
    } catch (error) {
      if (!this.#stale) this.#failed(error instanceof Fault ? error : new Fault(0, error.message));
    }
    this.#asking = false;
    const wait = this.#stale ? 0 : Math.min(EVERY * 2 ** Math.max(0, this.#misses - 1), SLOWEST);
    if (!document.hidden) this.#timer = setTimeout(() => this.#ask(), wait);
  }

  #heard(figures) {
    this.#misses = 0;
    if (figures.draining) this.#become("busy", "The server finishes what runs and then stops.");
    else this.#become("up", "connected");
    this.dispatchEvent(new CustomEvent("figures", { detail: figures }));
  }

  #failed({ status, message }) {
    this.#misses += 1;
    if (status === 401) this.#become("locked", message);
    else if (status === 403) this.#become("refused", message);
    else if (status === 0) this.#become("gone", "The server is gone. This page looks for it every few seconds.");
    else this.#become("busy", message);
  }

  #become(state, words) {
    if (this.state === state && this.words === words) return;
    const before = this.state;
    Object.assign(this, { state, words });
    this.dispatchEvent(new CustomEvent("state", { detail: { state, words, before } }));
  }
}
