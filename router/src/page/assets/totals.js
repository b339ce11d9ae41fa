// The three figures on top: bytes saved, time to first token raw against coded, requests.

import { bytes, count, h, measure, millis, put, ratio } from "./dom.js";

function medianBar(name, kind) {
  const words = h("span", { class: "words" });
  const fill = h("i", { class: kind });
  return {
    element: h("div", { class: "median" }, h("span", {}, name), h("div", { class: "gauge", "aria-hidden": "true" }, fill), words),
    show(median, most) {
      measure(fill, "share", median.p50_ms > 0 && most > 0 ? median.p50_ms / most : 0);
      put(words, median.samples > 0 ? `${millis(median.p50_ms)}, n = ${count(median.samples)}` : "–");
    },
  };
}

function sum(codecs) {
  const add = (name) => codecs.reduce((total, sums) => total + sums[name], 0);
  return { raw: add("raw_bytes"), wire: add("wire_bytes") };
}

function sentWords(coded, plain) {
  const parts = [];
  if (coded.raw > 0) parts.push(`${bytes(coded.raw)} of caches went coded, as ${bytes(coded.wire)}`);
  if (plain.raw > 0) parts.push(`${bytes(plain.raw)} went raw`);
  return parts.length > 0 ? parts.join("; ") : "No cache has been sent yet.";
}

/** Shows the totals in an element. */
export function totalsView(root) {
  const [saved, of, factor] = [h("strong", { class: "big", id: "saved" }), h("span"), h("span", { class: "factor" })];
  const fill = h("i", { class: "coded" });
  const sent = h("div", { class: "gauge raw-behind", "aria-hidden": "true" }, fill);
  const medians = ["raw", "coded", "local"].map((name) => [name, medianBar(name, name)]);
  const [requests, became] = [h("strong", { class: "big" }), h("span")];
  root.append(
    h("div", { class: "card" }, h("h2", {}, "Saved on the wire"), h("p", { class: "figure" }, saved, factor), sent, h("p", { class: "hint" }, of)),
    h("div", { class: "card medians" }, h("h2", {}, "Time to first token, median"), ...medians.map(([, bar]) => bar.element)),
    h("div", { class: "card" }, h("h2", {}, "Requests"), h("p", {}, requests), h("p", { class: "hint" }, became)),
  );
  return ({ totals }) => {
    if (!totals) return;
    put(saved, bytes(totals.saved_bytes));
    const coded = sum(totals.codecs.filter(({ codec }) => codec !== "raw"));
    const plain = sum(totals.codecs.filter(({ codec }) => codec === "raw"));
    put(factor, coded.wire > 0 ? ratio(coded.raw / coded.wire) : "");
    put(of, sentWords(coded, plain));
    measure(fill, "share", coded.raw > 0 ? Math.min(1, coded.wire / coded.raw) : 0);
    sent.hidden = coded.raw === 0;
    const most = Math.max(...medians.map(([name]) => totals.ttft[name].p50_ms ?? 0));
    for (const [name, bar] of medians) bar.show(totals.ttft[name], most);
    medians.at(-1)[1].element.hidden = totals.ttft.local.samples === 0;
    put(requests, count(totals.requests));
    const parts = [["running", totals.running], ["done", totals.done], ["cancelled", totals.cancelled],
      ["failed", totals.failed], ["refused", totals.refused]];
    put(became, parts.filter(([name, n]) => n > 0 || name === "running").map(([name, n]) => `${count(n)} ${name}`).join(" · "));
  };
}
