// Puts the page together.

import { Board } from "./board.js";
import { put } from "./dom.js";
import { codecsView, nodesView } from "./nodes.js";
import { Playground } from "./playground.js";
import { RequestsView } from "./requests.js";
import { totalsView } from "./totals.js";

/** Between two looks at requests that run: their times grow though nothing is heard of them. */
const CLOCK_MS = 250;

const get = (id) => document.getElementById(id);
const FEED = { connecting: "connecting", live: "live", lost: "reconnecting", locked: "needs a key" };

const requests = new RequestsView(get("requests"), get("legend"));
const showRequests = (board) => requests.show(board);
const views = [totalsView(get("totals")), nodesView(get("nodes")), codecsView(get("codecs")), showRequests, showFeed];
const board = new Board((changed) => views.forEach((show) => show(changed)));

function showFeed({ state, reason, model }) {
  get("feed").dataset.state = state;
  put(get("feed").firstElementChild, FEED[state]);
  put(get("board-note"), reason);
  put(get("model"), model ?? "");
}

function tick() {
  const isRunning = [...board.requests.values()].some((request) => request.ended === null);
  if (isRunning && board.state === "live" && !document.hidden) showRequests(board);
}

if (/Mac|iPhone|iPad/.test(navigator.userAgent)) put(document.querySelector("#send kbd"), "⌘ ↵");
new Playground(() => board.model);
views.forEach((show) => show(board));
setInterval(tick, CLOCK_MS);
board.follow();
