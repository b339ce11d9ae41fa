// Bars of a request: its phases up to the first token, and its bytes raw against wire. Lengths are set as numbers in
// custom properties; what they are relative to (`--ms-scale`, `--byte-scale`) is set on an ancestor, so that all bars
// below it compare.

import { bytes, h, measure, millis, put, ratio } from "./dom.js";

const PHASES = [
  ["queue", "wait for the prefill engine"],
  ["prefill", "forward passes over the prompt"],
  ["encode", "coding the cache"],
  ["wire", "bytes arriving"],
  ["decode", "decoding the cache"],
];
/** The prompt's lane and the cache's. */
const LANES = [["queue", "prefill", "rest"], ["gap", "encode", "wire", "decode"]];

/** Milliseconds of each phase; of what is left up to the first token; of what lies before the cache's lane. */
function durations(transfer) {
  const known = Object.fromEntries(PHASES.map(([name]) => [name, Math.max(0, transfer[`${name}_ms`] ?? 0)]));
  const ttft = Math.max(0, transfer.ttft_ms ?? 0);
  const cache = known.encode + known.wire + known.decode;
  return { ...known, gap: Math.max(0, ttft - cache), rest: Math.max(0, ttft - cache - known.queue - known.prefill), cache };
}

/** Length of a request's bar, in milliseconds. */
export function span(transfer) {
  const { queue, prefill, cache } = durations(transfer);
  return Math.max(queue + prefill, cache, transfer.ttft_ms ?? 0);
}

/** A bar of phases; `show` fills it, `wait` shows that nothing is known yet but the time. */
export function phaseBar() {
  const segments = new Map(LANES.flat().map((name) => [name, h("i", { class: name })]));
  const tick = h("b", { class: "tick" });
  const lanes = LANES.map((names) => h("div", { class: "lane" }, ...names.map((name) => segments.get(name))));
  const element = h("div", { class: "phases", role: "img" }, ...lanes, tick);
  const lay = (lengths, ttft) => {
    for (const [name, segment] of segments) measure(segment, "ms", lengths[name] ?? 0);
    tick.hidden = ttft == null;
    measure(tick, "ms", ttft ?? 0);
  };
  return {
    element,
    show(transfer) {
      const lengths = durations(transfer);
      lay(lengths, transfer.ttft_ms);
      element.classList.remove("waiting");
      const words = [...PHASES, ["rest"]].filter(([name]) => lengths[name] > 0).map(([name]) => `${name} ${millis(lengths[name])}`);
      const label = `first token after ${millis(transfer.ttft_ms)}: ${words.join(", ")}`;
      element.setAttribute("aria-label", label);
      element.title = label;
    },
    wait(ms) {
      lay({ rest: ms }, null);
      element.classList.add("waiting");
      element.setAttribute("aria-label", `no token yet after ${millis(ms)}`);
      element.removeAttribute("title");
    },
  };
}

/** Two bars, raw above wire, and their numbers. */
export function byteBars() {
  const raw = h("i", { class: "raw" });
  const wire = h("i", { class: "wire-bytes" });
  const words = h("span", { class: "words" });
  const element = h("div", { class: "bytes" }, h("div", { class: "pair", "aria-hidden": "true" }, raw, wire), words);
  return {
    element,
    show(transfer) {
      measure(raw, "bytes", transfer.raw_bytes);
      measure(wire, "bytes", transfer.wire_bytes);
      const isLocal = transfer.source === "local";
      const sizes = `${bytes(transfer.raw_bytes)} → ${bytes(transfer.wire_bytes)}`;
      put(words, isLocal ? "nothing sent" : `${sizes} · ${ratio(transfer.ratio)}`);
    },
  };
}

/** Sets what the bars below an element are relative to. */
export function scale(element, transfers) {
  measure(element, "ms-scale", Math.max(1, ...transfers.map(span)));
  measure(element, "byte-scale", Math.max(1, ...transfers.map((t) => Math.max(t.raw_bytes, t.wire_bytes))));
}

/** What the colours mean. */
export function legend() {
  const keys = [...PHASES, ["rest", "everything else up to the first token"]];
  const items = keys.map(([name, meaning]) => h("li", { title: meaning }, h("i", { class: name }), name));
  const note = "Lengths are durations, from the request's arrival on. Above: the prompt. Below: its cache, set to end with the " +
    "first token; streamed, it is coded and sent beside the prompt pass.";
  return h("div", { class: "legend" },
    h("ul", {}, ...items, h("li", {}, h("b", { class: "tick" }), "first token")),
    h("p", { class: "hint" }, note));
}
