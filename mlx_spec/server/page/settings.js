// Parameters of requests: an empty field is not sent, and means the server's own value.

import { announce, byId, copy, make, store, stored } from "./dom.js";

const NUMBERS = ["temperature", "max_tokens", "top_p", "top_k", "min_p", "seed", "num_draft_tokens"];

const form = () => byId("parameters");

export function wireSettings(bodyOf) {
  for (const [name, value] of Object.entries(stored("settings", {}))) {
    if (form().elements[name]) form().elements[name].value = value;
  }
  form().addEventListener("input", keep);
  form().addEventListener("submit", (event) => event.preventDefault());
  byId("reset").addEventListener("click", () => {
    form().reset();
    keep();
    announce("All parameters are the server’s.");
  });
  byId("curl").addEventListener("click", (event) => copy(event.target, curl(bodyOf())));
}

function keep() {
  const fields = [...form().elements].filter((field) => field.name && field.value);
  store("settings", Object.fromEntries(fields.map((field) => [field.name, field.value])));
}

// The first field among these that holds no valid number, or null; it is shown with its reason.
export function invalid(own) {
  const fields = [...form().elements, ...own].filter((field) => field.name);
  for (const field of fields) field.setAttribute("aria-invalid", !field.checkValidity());
  return fields.find((field) => !field.checkValidity()) ?? null;
}

const filled = (fields) =>
  Object.fromEntries(
    [...fields]
      .filter((field) => NUMBERS.includes(field.name) && field.value !== "")
      .map((field) => [field.name, Number(field.value)]),
  );

// A request's body; a conversation's own fields come before those of all.
export function requestBody(model, messages, own = []) {
  const system = form().elements.system.value.trim();
  return {
    model,
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    ...filled(form().elements),
    ...filled(own),
    stream: true,
    stream_options: { include_usage: true },
    mlx_spec: { drafts: true },
  };
}

// As a command for a shell; the key is named, never written.
function curl(body) {
  const quoted = JSON.stringify(body, null, 1).replaceAll("'", "'\\''");
  const url = new URL("/v1/chat/completions", location.href);
  return `curl -N ${url} \\\n  -H 'Content-Type: application/json' \\\n  -H "Authorization: Bearer $MLX_SPEC_API_KEY" \\\n  -d '${quoted}'\n`;
}

// A conversation's own parameters, folded away until wanted.
export function ownFields(number) {
  const field = (label, attributes) =>
    make("label", {}, label, make("input", { type: "number", placeholder: "as all", ...attributes }));
  const temperature = { name: "temperature", min: 0, max: 10, step: "any", inputmode: "decimal" };
  const seed = { name: "seed", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, inputmode: "numeric" };
  const drafts = { name: "num_draft_tokens", min: 0, step: 1, inputmode: "numeric", title: "0: none" };
  const box = make(
    "div",
    { class: "own", hidden: true, id: `own-${number}`, role: "group", "aria-label": "Of this conversation" },
    field("Temperature", temperature),
    field("Seed", seed),
    field("Most guesses", drafts),
  );
  return { box, fields: [...box.querySelectorAll("input")] };
}
