// The form: what is asked, how, and where the answers go. One thing runs at a time, and can be stopped.

import { ApiError, generate, servedModel, setKey, words } from "./api.js";
import { AnswerView, verdict } from "./answer.js";
import { legend, scale } from "./bars.js";
import { count, h, put } from "./dom.js";
import { sample } from "./samples.js";

const get = (id) => document.getElementById(id);
const number = (id) => Number(get(id).value);
/** Codecs that have tiers, or may choose one that has. */
const TRANSFORMS = ["auto", "kvtc"];

/** Streams one request into a view and gives the report of its transfer. */
async function stream(fields, view, signal) {
  const end = {};
  for await (const chunk of generate(fields.messages ? "chat" : "completion", fields, signal)) {
    const choice = chunk.choices?.[0];
    const piece = choice?.delta?.content ?? choice?.text;
    if (piece) view.append(piece);
    end.reason = choice?.finish_reason ?? end.reason;
    end.usage = chunk.usage ?? end.usage;
    end.transfer = chunk.kv_transfer ?? end.transfer;
  }
  view.end(end);
  if (end.transfer) scale(view.element, [end.transfer]);
  return end.transfer;
}

export class Playground {
  /** `knownModel` gives the model's id once the board has told it. */
  constructor(knownModel) {
    this.knownModel = knownModel;
    [this.form, this.prompt, this.answers] = [get("ask"), get("prompt"), get("answers")];
    /** What can be stopped. */
    this.running = null;
    /** The conversation so far, in chat. */
    this.turns = [];
    /** The last sample, to check answers by. */
    this.sampled = { prompt: "", answer: null };
    this.listenToForm();
    this.listenToSettings();
    this.prompt.value = sample("short", "completion").prompt;
    this.measurePrompt();
  }

  get kind() {
    return this.form.elements.kind.value;
  }

  say(text) {
    put(get("status"), text);
  }

  async body(signal) {
    const fields = {
      model: this.knownModel() ?? (await servedModel(signal)),
      max_tokens: number("max_tokens"),
      temperature: number("temperature"),
      top_p: number("top_p"),
      kv_codec: get("codec").value,
      stream: true,
      stream_options: { include_usage: true },
      kv_transfer: true,
    };
    if (!get("tier").disabled) fields.kv_tier = number("tier");
    if (get("seed").value !== "") fields.seed = number("seed");
    if (this.kind === "chat") fields.messages = [...this.turns, { role: "user", content: this.prompt.value }];
    else fields.prompt = this.prompt.value;
    return fields;
  }

  /** Runs something that can be stopped; what goes wrong is told in the view that was at work. */
  async run(work) {
    if (this.running || !this.form.reportValidity()) return;
    if (this.prompt.value === "") {
      this.say("Write a prompt first, or take a sample.");
      this.prompt.focus();
      return;
    }
    this.running = new AbortController();
    const { signal } = this.running;
    const views = [];
    const view = (title) => {
      views.push(new AnswerView(title));
      return views.at(-1);
    };
    this.busy(true);
    this.say("Sent.");
    try {
      await work(signal, view);
    } catch (error) {
      this.failed(error, signal.aborted, views.at(-1));
    } finally {
      this.running = null;
      this.busy(false);
    }
  }

  failed(error, wasStopped, view) {
    const message = wasStopped ? "Stopped." : words(error, this.kind);
    if (wasStopped) view?.stop();
    else view?.fail(message);
    this.say(message);
    if (error instanceof ApiError && error.status === 401) document.querySelector(".key").open = true;
  }

  busy(is) {
    // A button that goes away must not take the focus with it.
    const hadFocus = document.activeElement === get("stop");
    get("send").disabled = is;
    get("compare").disabled = is;
    get("stop").hidden = !is;
    if (!is && hadFocus) get("send").focus();
    get("restart").hidden = is || this.turns.length === 0;
  }

  /** What an answer to a sample says of the cache. */
  checked(text) {
    const { prompt, answer } = this.sampled;
    if (answer === null || prompt !== this.prompt.value) return "";
    return text.includes(answer) ? ` The hidden code ${answer} was found.` : ` The hidden code is ${answer}.`;
  }

  send() {
    return this.run(async (signal, view) => {
      const isChat = this.kind === "chat";
      const answer = view(isChat ? "Assistant" : "Answer");
      if (!isChat || this.turns.length === 0) this.answers.replaceChildren();
      if (isChat) this.answers.append(said(this.prompt.value));
      this.answers.append(answer.element);
      const fields = await this.body(signal);
      await stream(fields, answer, signal);
      answer.element.append(legend());
      this.say(`Done.${this.checked(answer.text)}`);
      if (!isChat) return;
      this.turns = [...fields.messages, { role: "assistant", content: answer.text }];
      this.prompt.value = "";
      this.measurePrompt();
    });
  }

  /** The same prompt raw, and then with the codec that is chosen. */
  compare() {
    return this.run(async (signal, view) => {
      const fields = await this.body(signal);
      const other = fields.kv_codec === "raw" ? "kvtc" : fields.kv_codec;
      const raw = view("raw");
      const summary = h("p", { class: "verdict", role: "status" }, "Raw first, then the same prompt coded.");
      const pair = h("div", { class: "compared" }, raw.element);
      this.answers.replaceChildren(h("div", { class: "comparison" }, summary, pair));
      const rawReport = await stream({ ...fields, ...unshared(), kv_codec: "raw" }, raw, signal);
      const coded = view(other);
      pair.append(coded.element);
      const coding = { kv_codec: other, kv_tier: number("tier") };
      const report = await stream({ ...fields, ...unshared(), ...coding }, coded, signal);
      // Both on one scale.
      for (const { element } of [raw, coded]) scale(element, [rawReport, report]);
      if (other === "auto") put(coded.heading, `auto: ${report.codec ?? "local prefill"}`);
      put(summary, verdict(rawReport, report, raw.text === coded.text) + this.checked(coded.text));
      pair.after(legend());
      this.say("Compared.");
    });
  }

  measurePrompt() {
    put(get("prompt-size"), `${count(this.prompt.value.length)} characters`);
  }

  take(size) {
    this.sampled = sample(size, this.kind);
    this.prompt.value = this.sampled.prompt;
    this.measurePrompt();
    this.prompt.focus();
    this.prompt.scrollTop = this.prompt.scrollHeight;
  }

  restart() {
    this.turns = [];
    this.answers.replaceChildren();
    get("restart").hidden = true;
    this.prompt.focus();
  }

  listenToForm() {
    const stop = () => this.running?.abort();
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.form.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      this.send();
    });
    document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
    get("compare").addEventListener("click", () => this.compare());
    get("stop").addEventListener("click", stop);
    get("restart").addEventListener("click", () => this.restart());
    this.prompt.addEventListener("input", () => this.measurePrompt());
    for (const button of document.querySelectorAll("[data-sample]")) {
      button.addEventListener("click", () => this.take(button.dataset.sample));
    }
  }

  listenToSettings() {
    for (const radio of document.querySelectorAll("[name=kind]")) {
      radio.addEventListener("change", () => {
        put(get("prompt-label"), this.kind === "chat" ? "Message" : "Prompt");
        this.running?.abort();
        this.turns = [];
        this.answers.replaceChildren();
      });
    }
    get("tier").addEventListener("input", () => put(get("tier-value"), get("tier").value));
    get("codec").addEventListener("change", () => {
      get("tier").disabled = !TRANSFORMS.includes(get("codec").value);
    });
    get("key").addEventListener("change", () => setKey(get("key").value.trim()));
  }
}

/** Both passes run the whole prompt: one that found the other's cache could not be compared with it. */
function unshared() {
  return { cache_salt: `${Date.now()}.${Math.random()}` };
}

function said(text) {
  return h("article", { class: "card said" }, h("h3", {}, "You"), h("div", { class: "text" }, text));
}
