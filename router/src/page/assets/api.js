// The router's API: requests with the key that was entered, server-sent events, errors in words.

const changed = new EventTarget();
let key = "";

/** Sets the key; it is kept in memory only. */
export function setKey(value) {
  if (value === key) return;
  key = value;
  changed.dispatchEvent(new Event("key"));
}

/** Resolves when another key is entered, or when the signal says so. */
export function nextKey(signal) {
  return new Promise((resolve) => {
    changed.addEventListener("key", resolve, { once: true, signal });
    signal.addEventListener("abort", resolve, { once: true });
  });
}

/** What the API has against a request. */
export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** An answer with status 200; everything else is thrown. */
export async function call(path, { body, signal } = {}) {
  const headers = { ...(key && { authorization: `Bearer ${key}` }), ...(body && { "content-type": "application/json" }) };
  const method = body ? "POST" : "GET";
  const response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
  if (response.ok) return response;
  const answer = await response.text();
  throw new ApiError(response.status, ...reason(answer, response.statusText));
}

function reason(answer, statusText) {
  try {
    const { error } = JSON.parse(answer);
    return [error.code ?? "", error.message ?? statusText];
  } catch {
    return ["", answer.slice(0, 300) || statusText]; // Not the router: a proxy before it.
  }
}

/** The events of a body: name and data. `onBytes` hears of everything that comes, comments too. */
export async function* events(response, onBytes = () => {}) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      onBytes();
      const parts = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const event = parse(part);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // Has ended or failed already.
  }
}

function parse(part) {
  let name = "message";
  const data = [];
  for (const line of part.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
  }
  return data.length > 0 ? { name, data: data.join("\n") } : null;
}

const PATHS = { completion: "/v1/completions", chat: "/v1/chat/completions" };

/** The chunks of a streamed answer. */
export async function* generate(kind, body, signal) {
  const response = await call(PATHS[kind], { body, signal });
  for await (const { data } of events(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(response.status, chunk.error.code ?? "", chunk.error.message);
    yield chunk;
  }
  throw new ApiError(response.status, "", "The answer broke off before its end.");
}

/** The id of the served model. */
export async function servedModel(signal) {
  const { data } = await (await call("/v1/models", { signal })).json();
  return data[0].id;
}

/** What to tell a person. */
export function words(error, kind) {
  if (!(error instanceof ApiError)) {
    return error instanceof TypeError ? "The router cannot be reached." : `Something is wrong with the answer: ${error.message}`;
  }
  if (error.status === 401 || error.status === 403) return `An API key is needed: enter one under “API key”. (${error.message})`;
  if (kind === "chat" && error.status === 404 && error.code !== "model_not_found") {
    return "This router does not serve chat. Choose Completion.";
  }
  return error.code ? `${error.message} (${error.code})` : error.message;
}
