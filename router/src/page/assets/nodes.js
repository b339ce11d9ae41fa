// The cluster: nodes with their load, links with their speed, totals by codec.

import { bytes, count, h, measure, millis, put, ratio, speed } from "./dom.js";

/** A bar with its name and its numbers. */
function gauge(name) {
  const words = h("span", { class: "words" });
  const fill = h("i");
  const bar = h("div", { class: "gauge", "aria-hidden": "true" }, fill);
  return {
    element: h("div", {}, h("div", { class: "line" }, h("span", {}, name), words), bar),
    show(used, limit, text) {
      const share = limit > 0 ? Math.min(1, used / limit) : 0;
      measure(fill, "share", share);
      bar.classList.toggle("full", share > 0.9);
      put(words, text);
    },
  };
}

function nodeView(id) {
  const [role, note] = [h("span", { class: "badge" }), h("span", { class: "note" })];
  const address = h("span", { class: "hint" });
  const [sessions, cache] = [gauge("Requests"), gauge("KV cache")];
  const head = h("div", { class: "line" }, h("strong", {}, id), role);
  const element = h("li", { class: "node" }, head, sessions.element, cache.element, h("div", { class: "line" }, address, note));
  return {
    element,
    show(node) {
      const busy = node.running + node.waiting;
      put(role, node.role);
      element.dataset.role = node.role;
      const waiting = node.waiting > 0 ? `, ${count(node.waiting)} waiting` : "";
      sessions.show(busy, node.max_sessions, `${count(node.running)} of ${count(node.max_sessions)}${waiting}`);
      cache.show(node.kv_used_tokens, node.kv_capacity_tokens,
        `${count(node.kv_used_tokens)} of ${count(node.kv_capacity_tokens)} tokens`);
      put(address, node.address);
      const notes = [node.draining && "draining", node.silent_seconds > 1 && `silent for ${node.silent_seconds} s`,
        !node.has_plan && "no plan"];
      put(note, notes.filter(Boolean).join(", "));
    },
  };
}

/** Shows nodes and links in an element. */
export function nodesView(root) {
  const views = new Map();
  const [list, links] = [h("ul", { class: "nodes" }), h("ul", { class: "links" })];
  const empty = h("p", { class: "empty" }, "No node has joined. Start a prefill-node and a decode-node with --router and this router's address for nodes.");
  root.append(empty, list, links);
  return (board) => {
    for (const [id, view] of views) {
      if (!board.nodes.has(id)) {
        view.element.remove();
        views.delete(id);
      }
    }
    const order = [...board.nodes.values()].sort((a, b) => b.role.localeCompare(a.role) || a.id.localeCompare(b.id));
    order.forEach((node, place) => {
      if (!views.has(node.id)) views.set(node.id, nodeView(node.id));
      const view = views.get(node.id);
      view.show(node);
      if (list.children[place] !== view.element) list.insertBefore(view.element, list.children[place] ?? null);
    });
    empty.hidden = order.length > 0;
    links.replaceChildren(...board.links.map((link) =>
      h("li", {}, h("span", {}, `${link.prefill} → ${link.decode}`), h("strong", {}, speed(link.gbps)))));
  };
}

/** Shows the totals by codec in an element. */
export function codecsView(root) {
  const body = h("tbody");
  const head = ["Codec", "Requests", "Raw → wire", "Ratio", "TTFT, median"].map((name) => h("th", { scope: "col" }, name));
  const table = h("table", {}, h("thead", {}, h("tr", {}, ...head)), body);
  const empty = h("p", { class: "empty" }, "Nothing has been sent yet.");
  root.append(empty, table);
  return ({ totals }) => {
    const codecs = totals?.codecs ?? [];
    empty.hidden = codecs.length > 0;
    table.hidden = codecs.length === 0;
    body.replaceChildren(...codecs.map((sums) => {
      const sizes = [`${bytes(sums.raw_bytes)} →`, bytes(sums.wire_bytes)].map((size) => h("span", {}, size));
      const sent = sums.codec === "local" ? ["nothing sent"] : [sizes[0], " ", sizes[1]];
      const cells = [[count(sums.requests)], sent, [ratio(sums.ratio)], [millis(sums.ttft.p50_ms)]];
      return h("tr", {}, h("th", { scope: "row" }, sums.codec), ...cells.map((cell) => h("td", {}, ...cell)));
    }));
  };
}
