// The requests, newest first, as they run. A row is made once and then changed, so that what is open stays open and
// what has the focus keeps it.

import { cacheWords } from "./answer.js";
import { byteBars, legend, phaseBar, span } from "./bars.js";
import { count, facts, h, measure, millis, put, speed } from "./dom.js";

/** Rows shown at first, and more each time that more are asked for. */
const STEP = 25;
const STATES = { placing: "placing", prefill: "prefill", decode: "decoding", done: "done", cancelled: "cancelled", failed: "failed" };

class RowView {
  constructor(request) {
    [this.codec, this.tokens, this.first, this.state, this.time] =
      ["badge", "words", "words", "state", "words"].map((name) => h("span", { class: name }));
    [this.phases, this.sizes] = [phaseBar(), byteBars()];
    this.details = h("dl", { class: "facts" });
    this.element = h("li", { "data-number": request.number }, h("details", {},
      h("summary", {},
        h("div", { class: "who" }, this.codec, this.tokens),
        h("div", { class: "when" }, this.phases.element, this.first),
        this.sizes.element,
        h("div", { class: "what" }, this.state, this.time)),
      this.details));
    this.drawn = null;
  }

  show(request, now) {
    const isRunning = request.ended === null;
    const elapsed = Math.max(0, (request.ended ?? now) - request.arrived);
    put(this.time, isRunning ? millis(elapsed) : `in ${millis(elapsed)}`);
    put(this.tokens, `${count(request.prompt_tokens)} in, ${count(request.tokens)} of ${count(request.max_tokens)} out`);
    if (request.kv_transfer === null) {
      this.phases.wait(elapsed);
      put(this.first, isRunning ? `${millis(elapsed)} so far` : "no token");
    }
    // The rest changes only with the object.
    if (request !== this.drawn) this.draw(request);
  }

  draw(request) {
    this.drawn = request;
    this.element.dataset.state = request.state;
    put(this.state, request.state === "failed" ? request.outcome : STATES[request.state]);
    put(this.codec, codecWords(request));
    this.details.replaceChildren(...detailsOf(request));
    if (request.kv_transfer === null) return;
    this.phases.show(request.kv_transfer);
    this.sizes.show(request.kv_transfer);
    put(this.first, `first token ${millis(request.kv_transfer.ttft_ms)}`);
  }
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
    ["Sequences", request.sequences > 1 && count(request.sequences)],
    ["Attempts", request.attempts > request.sequences && count(request.attempts)],
    ["Cache", report && cacheWords(report)],
    ["Kept", report?.cached_tokens > 0 && `${count(report.cached_tokens)} tokens of the prompt were there from an earlier one`],
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

/** Sets what the bars of all rows are relative to. */
function scaleRows(list, shown, now) {
  const reports = shown.map((request) => request.kv_transfer).filter(Boolean);
  const waiting = shown.filter((r) => r.kv_transfer === null && r.ended === null).map((r) => now - r.arrived);
  measure(list, "ms-scale", msScale([...reports.map(span), ...waiting]));
  measure(list, "byte-scale", Math.max(1, ...reports.map((t) => Math.max(t.raw_bytes, t.wire_bytes))));
}

export class RequestsView {
  /** Shows the requests in one element and what their colours mean in another. */
  constructor(root, legendRoot) {
    this.views = new Map();
    this.list = h("ol", { class: "requests" });
    this.empty = h("p", { class: "empty" }, "No request yet. Send one from the playground, or with curl:",
      h("code", {}, `curl ${location.origin}/v1/completions -d '{"model": "…", "prompt": "…", "kv_transfer": true}'`));
    this.more = h("button", { type: "button", class: "quiet" });
    this.legend = legendRoot;
    this.limit = STEP;
    root.append(this.empty, this.list, this.more);
    legendRoot.append(legend());
    this.more.addEventListener("click", () => {
      this.limit += STEP;
      this.show(this.board);
    });
  }

  show(board) {
    this.board = board;
    const all = [...board.requests.values()].sort((a, b) => b.number - a.number);
    const shown = all.slice(0, this.limit);
    this.dropAllBut(new Set(shown.map((request) => request.number)));
    shown.forEach((request, place) => this.place(request, place, board.now()));
    scaleRows(this.list, shown, board.now());
    this.empty.hidden = all.length > 0;
    this.legend.hidden = all.length === 0;
    this.more.hidden = all.length <= this.limit;
    put(this.more, `Show older (${count(all.length - shown.length)})`);
  }

  place(request, place, now) {
    if (!this.views.has(request.number)) this.views.set(request.number, new RowView(request));
    const view = this.views.get(request.number);
    view.show(request, now);
    const there = this.list.children[place];
    if (there !== view.element) this.list.insertBefore(view.element, there ?? null);
  }

  dropAllBut(numbers) {
    for (const [number, view] of this.views) {
      if (numbers.has(number)) continue;
      view.element.remove();
      this.views.delete(number);
    }
  }
}
