// One answer as it comes: its text, how fast it was, and what its cache cost.

import { byteBars, phaseBar } from "./bars.js";
import { bytes, count, facts, h, millis, put, speed } from "./dom.js";

/** Shortest time over which a speed is told. */
const LEAST_MS = 50;

/** An answer's place in the page. */
export class AnswerView {
  constructor(title) {
    this.heading = h("h3", {}, title);
    this.state = h("span", { class: "state" }, "waiting for the first token");
    this.body = h("div", { class: "text", "aria-live": "polite", "aria-busy": "true" });
    this.list = h("dl", { class: "facts" });
    const head = h("div", { class: "line" }, this.heading, this.state);
    this.element = h("article", { class: "card answer" }, head, this.body, this.list);
    this.started = performance.now();
    /** When the first and the last piece came. */
    [this.first, this.last] = [null, null];
  }

  get text() {
    return this.body.textContent;
  }

  append(piece) {
    this.last = performance.now();
    if (this.first === null) {
      this.first = this.last;
      put(this.state, "streaming");
      this.list.replaceChildren(...facts([["First token", millis(this.first - this.started)]]));
    }
    this.body.append(piece);
  }

  /** Everything has come, and what the router says of it. */
  end({ usage, transfer, reason }) {
    this.over(reason === "length" ? "done, at max tokens" : "done");
    this.list.replaceChildren(...facts([
      ["First token", millis(transfer?.ttft_ms ?? this.first - this.started)],
      ["Then", usage && this.speed(usage.completion_tokens)],
      ["Prompt", usage && `${count(usage.prompt_tokens)} tokens`],
      ["Answer", usage && `${count(usage.completion_tokens)} tokens`],
      ["Cache", transfer && cacheWords(transfer)],
      ["Link", transfer?.link_gbps && speed(transfer.link_gbps)],
    ]));
    if (!transfer) return;
    const [phases, sizes] = [phaseBar(), byteBars()];
    phases.show(transfer);
    sizes.show(transfer);
    this.element.append(phases.element, sizes.element);
    if (transfer.bypass_reason) this.element.append(h("p", { class: "hint" }, transfer.bypass_reason));
  }

  stop() {
    this.over("stopped");
  }

  fail(message) {
    this.over("failed");
    this.element.append(h("p", { class: "error", role: "alert" }, message));
  }

  over(state) {
    this.body.setAttribute("aria-busy", "false");
    put(this.state, state);
  }

  /** Tokens that have come all at once say nothing of a speed. */
  speed(tokens) {
    const took = this.last - this.first;
    return took >= LEAST_MS ? `${((tokens - 1) / (took / 1000)).toFixed(1)} tokens/s` : null;
  }
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
