// The requests, newest first, as they run. A row is made once and then changed, so that what is open stays open and
// what has the focus keeps it.

import { cacheWords } from "./answer.js";
import { byteBars, legend, phaseBar, span } from "./bars.js";
import { count, facts, h, measure, millis, put, speed } from "./dom.js";

/** Rows shown at first, and more each time that more are asked for. */
const STEP = 25;
const STATES = { placing: "placing", prefill: "prefill", decode: "decoding", done: "done", cancelled: "cancelled", failed: "failed" };

function rowView(request) {
  const [codec, tokens, first, state, time] = ["b", "span", "span", "span", "span"].map((tag) => h(tag));
  const [phases, sizes] = [phaseBar(), byteBars()];
  const details = h("dl", { class: "facts" });
  const element = h("li", {}, h("details", {},
    h("summary", {},
      h("div", { class: "who" }, codec, tokens),
      h("div", { class: "when" }, phases.element, first),
      sizes.element,
      h("div", { class: "what" }, state, time)),
    details));
  codec.className = "badge";
  tokens.className = first.className = time.className = "words";
  state.className = "state";
  element.dataset.number = request.number;
  let drawn = null;
  return {
    element,
    show(request, now) {
      const elapsed = (request.ended ?? now) - request.arrived;
      if (request.kv_transfer === null) {
        phases.wait(Math.max(0, elapsed));
        put(first, request.ended === null ? `${millis(elapsed)} so far` : "no token");
        sizes.clear();
      }
      put(time, request.ended === null ? millis(Math.max(0, elapsed)) : `in ${millis(elapsed)}`);
      put(tokens, `${count(request.prompt_tokens)} in, ${count(request.tokens)} of ${count(request.max_tokens)} out`);
      if (request === drawn) return;
      drawn = request;
      element.dataset.state = request.state;
      put(state, request.state === "failed" ? request.outcome : STATES[request.state]);
      put(codec, codecWords(request));
      details.replaceChildren(...detailsOf(request));
      if (request.kv_transfer !== null) {
        phases.show(request.kv_transfer);
        sizes.show(request.kv_transfer);
        put(first, `first token ${millis(request.kv_transfer.ttft_ms)}`);
      }
    },
  };
}

function codecWords({ codec, tier, decode_node }) {
  if (codec === null) return decode_node === null ? "unplaced" : "local";
  return tier === null ? codec : `${codec} ${tier}`;
}

function detailsOf(request) {
  const report = request.kv_transfer;
  const phases = report && ["queue", "prefill", "encode", "wire", "decode"].map((name) => `${name} ${millis(report[`${name}_ms`])}`);
  return facts([
    ["Request", request.id],
    ["Number", count(request.number)],
    ["Outcome", request.outcome],
    ["Nodes", [request.prefill_node, request.decode_node].filter(Boolean).join(" → ")],
    ["Attempts", request.attempts > 1 ? count(request.attempts) : null],
    ["Cache", report && cacheWords(report)],
    ["Phases", phases?.join(", ")],
    ["Forecast", report?.predicted_ms && `${millis(report.predicted_ms)} from dispatch to first token`],
    ["Second token", report?.second_token_ms && `after ${millis(report.second_token_ms)}`],
    ["Overlap", report?.overlap != null && `${(100 * report.overlap).toFixed(0)} % of coding and sending hidden by the prompt pass`],
    ["Link", report?.link_gbps && speed(report.link_gbps)],
    ["Why not coded", report?.bypass_reason],
  ]);
}

/** What bars are relative to: the longest, unless it is far longer than most, as first requests are. */
function msScale(lengths) {
  if (lengths.length === 0) return 1;
  const sorted = [...lengths].sort((a, b) => a - b);
  const most = sorted[Math.floor(0.8 * (sorted.length - 1))];
  return Math.max(1, Math.min(sorted.at(-1), 2.5 * most));
}

/** Shows the requests in an element. */
export function requestsView(root, legendRoot) {
  const views = new Map();
  const list = h("ol", { class: "requests" });
  const empty = h("p", { class: "empty" }, "No request yet. Send one from the playground, or with curl:",
    h("code", {}, `curl ${location.origin}/v1/completions -d '{"model": "…", "prompt": "…", "kv_transfer": true}'`));
  const more = h("button", { type: "button", class: "quiet" });
  let limit = STEP;
  let last = null;
  root.append(empty, list, more);
  legendRoot.append(legend());

  const show = (board) => {
    last = board;
    const all = [...board.requests.values()].sort((a, b) => b.number - a.number);
    const shown = all.slice(0, limit);
    const numbers = new Set(shown.map((request) => request.number));
    for (const [number, view] of views) {
      if (!numbers.has(number)) {
        view.element.remove();
        views.delete(number);
      }
    }
    const now = board.now();
    shown.forEach((request, place) => {
      if (!views.has(request.number)) views.set(request.number, rowView(request));
      const view = views.get(request.number);
      view.show(request, now);
      if (list.children[place] !== view.element) list.insertBefore(view.element, list.children[place] ?? null);
    });
    const reports = shown.map((request) => request.kv_transfer).filter(Boolean);
    const waiting = shown.filter((r) => r.kv_transfer === null && r.ended === null).map((r) => now - r.arrived);
    measure(list, "ms-scale", msScale([...reports.map(span), ...waiting]));
    measure(list, "byte-scale", Math.max(1, ...reports.map((t) => Math.max(t.raw_bytes, t.wire_bytes))));
    empty.hidden = all.length > 0;
    legendRoot.hidden = all.length === 0;
    more.hidden = all.length <= limit;
    put(more, `Show older (${count(all.length - shown.length)})`);
  };
  more.addEventListener("click", () => {
    limit += STEP;
    show(last);
  });
  return show;
}
