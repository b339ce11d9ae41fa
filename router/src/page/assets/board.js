// What the router's feed has told: held here, and handed to whoever shows it once per frame. While the page is hidden
// the feed is let go.

import { ApiError, call, events, nextKey, words } from "./api.js";

/** Requests kept, as the router keeps them. */
const MAX_REQUESTS = 200;
/** The router says something at least every 15 seconds. */
const SILENCE_MS = 40_000;
const FIRST_PAUSE_MS = 500;
const LAST_PAUSE_MS = 8_000;

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function untilVisible() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
}

export class Board {
  /** `show` is called with this board when something has changed. */
  constructor(show) {
    this.model = null;
    this.totals = null;
    this.nodes = new Map();
    this.links = [];
    /** By number, oldest first. */
    this.requests = new Map();
    /** "connecting", "live", "lost" or "locked", and why. */
    this.state = "connecting";
    this.reason = "";
    this.ahead = 0;
    this.show = show;
    this.isDue = false;
  }

  /** Milliseconds since 1970 by the router's clock. */
  now() {
    return Date.now() - this.ahead;
  }

  /** Follows the feed for as long as the page lives. */
  async follow() {
    let wait = FIRST_PAUSE_MS;
    for (;;) {
      await untilVisible();
      const attempt = new AbortController();
      const hide = () => document.hidden && attempt.abort();
      document.addEventListener("visibilitychange", hide);
      try {
        await this.listen(attempt, () => (wait = FIRST_PAUSE_MS));
        this.became("lost", "The router has ended the feed.");
      } catch (error) {
        const isLocked = error instanceof ApiError && error.status === 401;
        if (!document.hidden) this.became(isLocked ? "locked" : "lost", words(error));
        if (isLocked) await nextKey(attempt.signal);
      } finally {
        document.removeEventListener("visibilitychange", hide);
      }
      await pause(wait);
      wait = Math.min(2 * wait, LAST_PAUSE_MS);
    }
  }

  async listen(attempt, onLive) {
    let timer;
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(() => attempt.abort(new TypeError("silence")), SILENCE_MS);
    };
    heard();
    try {
      const response = await call("/board/events", { signal: attempt.signal });
      for await (const { name, data } of events(response, heard)) {
        this.take(name, JSON.parse(data));
        onLive();
      }
    } finally {
      clearTimeout(timer);
    }
  }

  take(name, data) {
    if (name === "snapshot") {
      this.model = data.model;
      this.nodes.clear();
      this.requests.clear();
    }
    this.ahead = Date.now() - data.now;
    this.totals = data.totals ?? this.totals;
    this.links = data.links ?? this.links;
    for (const node of data.nodes ?? []) this.nodes.set(node.id, node);
    for (const id of data.gone ?? []) this.nodes.delete(id);
    for (const request of data.requests ?? []) this.requests.set(request.number, request);
    for (const [number, tokens] of data.tokens ?? []) {
      const request = this.requests.get(number);
      if (request) request.tokens = tokens;
    }
    for (const number of this.requests.keys()) {
      if (this.requests.size <= MAX_REQUESTS) break;
      this.requests.delete(number);
    }
    this.became("live", "");
  }

  became(state, reason) {
    this.state = state;
    this.reason = reason;
    if (this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => {
      this.isDue = false;
      this.show(this);
    });
  }
}
