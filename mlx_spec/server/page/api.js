// The server's API: the key, requests, what went wrong in words, and streamed answers.

const KEY = "mlx-spec.key";

let held = null;

// The key lives in this tab's session and nowhere else.
export const key = {
  get() {
    try {
      return sessionStorage.getItem(KEY) ?? held;
    } catch {
      return held;
    }
  },
  set(value) {
    held = value || null;
    try {
      if (held) sessionStorage.setItem(KEY, held);
      else sessionStorage.removeItem(KEY);
    } catch {
      // Storage is forbidden: it lasts as long as the page.
    }
  },
};

// What went wrong. `status` is 0 without an answer; `retry` the seconds to wait, or null.
export class Fault extends Error {
  constructor(status, message, retry = null) {
    super(message);
    this.status = status;
    this.retry = retry;
  }
}

export const LOST = "The connection to the server was lost.";

async function faultOf(response) {
  let words = "";
  try {
    const body = await response.json();
    words = body.error?.message ?? body.detail ?? "";
    if (typeof words !== "string") words = JSON.stringify(words);
  } catch {
    // Not JSON: somebody between us and the server answered.
  }
  const after = Number.parseFloat(response.headers.get("retry-after"));
  const { status } = response;
  if (status === 401) return new Fault(status, words || "An API key is needed.");
  if (status === 429) return new Fault(status, full(words), after || 1);
  if (status === 503) return new Fault(status, sentence("The server takes no requests now", words), after || null);
  if (status >= 500) return new Fault(status, sentence("The server failed", words || `status ${status}`));
  return new Fault(status, words || `The server refused the request (status ${status}).`);
}

const full = (words) => sentence("The server is full", words);

const sentence = (start, words) => (words ? `${start}: ${words}` : `${start}.`);

// `credentials` parts the browser's connections in two groups of six: answers that stream can
// never keep the figures waiting. No cookie exists in either.
export async function request(path, { credentials = "same-origin", ...init } = {}) {
  const headers = { ...init.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...init, headers, credentials });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault(0, error.name === "TimeoutError" ? "The server does not answer." : LOST);
  }
  if (!response.ok) throw await faultOf(response);
  return response;
}

// The data of server-sent events, as they come.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await next(reader);
      if (done) return;
      rest = (rest + value).replaceAll("\r\n", "\n");
      const parts = rest.split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = part.split("\n").filter((line) => line.startsWith("data:"));
        if (data.length) yield data.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading wants no more
  }
}

async function next(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw error.name === "AbortError" ? error : new Fault(0, LOST);
  }
}

// A chat's answer piece by piece: {text, reasoning, drafter, finish, usage}, each where it is said.
export async function* chat(body, signal) {
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
    credentials: "omit",
  });
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    yield piece(JSON.parse(data));
  }
  throw new Fault(0, LOST);
}

function piece(chunk) {
  if (chunk.error) throw new Fault(chunk.error.code ?? 500, chunk.error.message ?? "The server failed.");
  const choice = chunk.choices?.[0];
  const delta = choice?.delta ?? {};
  const calls = (delta.tool_calls ?? []).map(({ function: f }) => `${f?.name ?? ""}${f?.arguments ?? ""}`);
  return {
    text: `${delta.content ?? ""}${calls.join("")}`,
    reasoning: delta.reasoning_content ?? delta.reasoning ?? "",
    counts: Boolean(chunk.mlx_spec || delta.content),
    drafter: chunk.mlx_spec?.drafter ?? null,
    finish: choice?.finish_reason ?? null,
    usage: chunk.usage ?? null,
  };
}
