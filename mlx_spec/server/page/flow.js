// Where an answer's text goes: lines between fences (```) stand in a box and in type of one width,
// everything else is prose. Nothing else is made of a model's text, and all of it is text nodes.

import { make } from "./dom.js";
import { hue } from "./drafters.js";
import { shown } from "./words.js";

const FENCE = "```";

export class Flow {
  #block = null;
  #code = false;
  #begun = ""; // of a line: what may yet become a fence
  #held = []; // the pieces of that
  #open = true; // whether that is still to be seen
  #fence = false; // what it turned out to be,
  #opening = false; // and which of the two

  constructor(place) {
    this.place = place;
  }

  add(text, drafter) {
    for (const line of text.split(/(?<=\n)/)) this.#addLine(line, drafter);
  }

  // No text follows: what was held back is what it is.
  end() {
    for (const [text, drafter] of this.#held.splice(0)) this.#put(text, drafter);
  }

  #addLine(text, drafter) {
    if (this.#open) {
      this.#begun += text;
      this.#held.push([text, drafter]);
      const begun = this.#begun.trimStart();
      if (!text.endsWith("\n") && FENCE.startsWith(begun.slice(0, 3)) && begun.length < 3) return;
      this.#open = false;
      this.#fence = begun.startsWith(FENCE);
      if (this.#fence && !this.#code) this.#turn(true);
      this.end();
    } else {
      this.#put(text, drafter);
    }
    if (text.endsWith("\n")) this.#endLine();
  }

  #endLine() {
    if (this.#fence && !this.#opening) this.#turn(false);
    this.#fence = this.#opening = false;
    this.#open = true;
    this.#begun = "";
  }

  #turn(code) {
    this.#code = this.#opening = code;
    this.#block = null;
  }

  #put(text, drafter) {
    this.#block ??= this.place.appendChild(make("div", { class: this.#code ? "code" : "prose" }));
    if (drafter) addGuess(this.#block, text, drafter);
    else addOwn(this.#block, text);
  }
}

// The target's own tokens share text nodes.
function addOwn(block, text) {
  if (block.lastChild?.nodeType === Node.TEXT_NODE) block.lastChild.appendData(shown(text));
  else block.append(shown(text));
}

// A guessed token has an element of its own; the space before a run of them is none of it.
function addGuess(block, text, drafter) {
  const goesOn = block.lastChild?.dataset?.drafter === drafter;
  const [, space, rest] = /^( ?)(.*)$/su.exec(text);
  const apart = space && rest.trim() && !goesOn;
  if (apart) addOwn(block, space);
  const span = make("span", { class: "draft", "data-hue": hue(drafter), title: `guessed by ${drafter}` });
  span.dataset.drafter = drafter;
  span.append(shown(apart ? rest : text));
  block.append(span);
}
