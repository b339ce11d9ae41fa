// One answer as it comes: its text, how fast it was, and what its cache cost.

import { byteBars, phaseBar } from "./bars.js";
import { bytes, count, facts, h, millis, put, speed } from "./dom.js";

/** Shortest time over which a speed is told. */
const LEAST_MS = 50;

/** An answer's place in the page. */
export function answerView(title) {
  const heading = h("h3", {}, title);
  const state = h("span", { class: "state" }, "waiting for the first token");
  const text = h("div", { class: "text", "aria-live": "polite", "aria-busy": "true" });
  const list = h("dl", { class: "facts" });
  const element = h("article", { class: "card answer" }, h("div", { class: "line" }, heading, state), text, list);
  const [phases, sizes] = [phaseBar(), byteBars()];
  const started = performance.now();
  let first = null;
  let last = null;

  // Tokens that have come all at once say nothing of a speed.
  const speedOf = (tokens) => (last - first >= LEAST_MS ? `${((tokens - 1) / ((last - first) / 1000)).toFixed(1)} tokens/s` : null);

  return {
    element,
    heading,
    get text() {
      return text.textContent;
    },
    append(piece) {
      last = performance.now();
      if (first === null) {
        first = last;
        put(state, "streaming");
        list.replaceChildren(...facts([["First token", millis(first - started)]]));
      }
      text.append(piece);
    },
    end({ usage, transfer, reason }) {
      text.setAttribute("aria-busy", "false");
      put(state, reason === "stop" ? "done" : reason === "length" ? "done, at max tokens" : "done");
      list.replaceChildren(...facts([
        ["First token", millis(transfer?.ttft_ms ?? first - started)],
        ["Then", usage && speedOf(usage.completion_tokens)],
        ["Prompt", usage && `${count(usage.prompt_tokens)} tokens`],
        ["Answer", usage && `${count(usage.completion_tokens)} tokens`],
        ["Cache", transfer && cacheWords(transfer)],
        ["Link", transfer?.link_gbps && speed(transfer.link_gbps)],
      ]));
      if (!transfer) return;
      phases.show(transfer);
      sizes.show(transfer);
      element.append(phases.element, sizes.element);
      if (transfer.bypass_reason) element.append(h("p", { class: "hint" }, transfer.bypass_reason));
    },
    stop() {
      text.setAttribute("aria-busy", "false");
      put(state, "stopped");
    },
    fail(message) {
      text.setAttribute("aria-busy", "false");
      put(state, "failed");
      element.append(h("p", { class: "error", role: "alert" }, message));
    },
  };
}

/** How the cache came. */
export function cacheWords(transfer) {
  if (transfer.source === "local") return `not sent: ${transfer.decode_node} ran the prompt`;
  const how = [transfer.codec, transfer.tier && `tier ${transfer.tier}`, transfer.mode].filter(Boolean);
  return how.join(", ");
}

/** What a comparison has shown. */
export function verdict(raw, coded, sameText) {
  const gain = raw.ttft_ms / coded.ttft_ms;
  const time = gain >= 1 ? `First token ${gain.toFixed(2)} times sooner` : `First token ${(1 / gain).toFixed(2)} times later`;
  const saved = raw.wire_bytes - coded.wire_bytes;
  const size = saved >= 0 ? `${bytes(saved)} fewer on the wire` : `${bytes(-saved)} more on the wire`;
  return `${time}, ${size}, ${sameText ? "the same text" : "another text"}.`;
}
