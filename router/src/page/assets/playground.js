// The form: what is asked, how, and where the answers go. One thing runs at a time, and can be stopped.

import { ApiError, generate, servedModel, setKey, words } from "./api.js";
import { answerView, verdict } from "./answer.js";
import { legend, scale } from "./bars.js";
import { count, h, put } from "./dom.js";
import { sample } from "./samples.js";

const get = (id) => document.getElementById(id);
const TRANSFORMS = ["auto", "kvtc"];

/** Brings the form to life. `knownModel` gives the model's id once the board has told it. */
export function playground(knownModel) {
  const form = get("ask");
  const [prompt, answers, status] = [get("prompt"), get("answers"), get("status")];
  const buttons = { send: get("send"), compare: get("compare"), stop: get("stop"), restart: get("restart") };
  let running = null;
  /** The conversation so far, in chat. */
  let turns = [];
  /** The last sample, to check answers by. */
  let sampled = { prompt: "", answer: null };

  const kind = () => form.elements.kind.value;
  const say = (text) => put(status, text);

  async function body(signal) {
    const number = (id) => Number(get(id).value);
    const fields = {
      model: knownModel() ?? (await servedModel(signal)),
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
    if (kind() === "chat") fields.messages = [...turns, { role: "user", content: prompt.value }];
    else fields.prompt = prompt.value;
    return fields;
  }

  /** Runs one request into a view and gives its report. */
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

  /** Runs something that can be stopped; what goes wrong is told in the view that was at work. */
  async function run(work) {
    if (running || !form.reportValidity()) return;
    if (prompt.value === "") {
      say("Write a prompt first, or take a sample.");
      prompt.focus();
      return;
    }
    running = new AbortController();
    const { signal } = running;
    const views = [];
    const view = (title) => {
      const made = answerView(title);
      views.push(made);
      return made;
    };
    busy(true);
    say("Sent.");
    try {
      await work(signal, view);
    } catch (error) {
      const message = signal.aborted ? "Stopped." : words(error, kind());
      if (signal.aborted) views.at(-1)?.stop();
      else views.at(-1)?.fail(message);
      say(message);
      if (error instanceof ApiError && error.status === 401) document.querySelector(".key").open = true;
    } finally {
      running = null;
      busy(false);
    }
  }

  function busy(is) {
    // A button that goes away must not take the focus with it.
    const hadFocus = document.activeElement === buttons.stop;
    buttons.send.disabled = is;
    buttons.compare.disabled = is;
    buttons.stop.hidden = !is;
    if (!is && hadFocus) buttons.send.focus();
    buttons.restart.hidden = is || turns.length === 0;
  }

  function checked(text) {
    if (sampled.answer === null || sampled.prompt !== prompt.value) return "";
    return text.includes(sampled.answer) ? ` The hidden code ${sampled.answer} was found.` : ` The hidden code is ${sampled.answer}.`;
  }

  const send = () => run(async (signal, view) => {
    const answer = view(kind() === "chat" ? "Assistant" : "Answer");
    if (kind() === "chat") {
      if (turns.length === 0) answers.replaceChildren();
      answers.append(h("article", { class: "card said" }, h("h3", {}, "You"), h("div", { class: "text" }, prompt.value)));
      answers.append(answer.element);
    } else {
      answers.replaceChildren(answer.element);
    }
    const fields = await body(signal);
    await stream(fields, answer, signal);
    answer.element.append(legend());
    say(`Done.${checked(answer.text)}`);
    if (fields.messages) {
      turns = [...fields.messages, { role: "assistant", content: answer.text }];
      prompt.value = "";
      measurePrompt();
    }
  });

  const compare = () => run(async (signal, view) => {
    const fields = await body(signal);
    const other = fields.kv_codec === "raw" ? "kvtc" : fields.kv_codec;
    const raw = view("raw");
    const summary = h("p", { class: "verdict", role: "status" }, "Raw first, then the same prompt coded.");
    const pair = h("div", { class: "compared" }, raw.element);
    answers.replaceChildren(h("div", { class: "comparison" }, summary, pair));
    const rawReport = await stream({ ...fields, kv_codec: "raw" }, raw, signal);
    const coded = view(other);
    pair.append(coded.element);
    const report = await stream({ ...fields, kv_codec: other, kv_tier: Number(get("tier").value) }, coded, signal);
    // Both on one scale.
    for (const { element } of [raw, coded]) scale(element, [rawReport, report]);
    if (other === "auto") put(coded.heading, `auto: ${report.codec ?? "local prefill"}`);
    put(summary, verdict(rawReport, report, raw.text === coded.text) + checked(coded.text));
    pair.after(legend());
    say("Compared.");
  });

  function measurePrompt() {
    put(get("prompt-size"), `${count(prompt.value.length)} characters`);
  }

  function take(size) {
    sampled = sample(size, kind());
    prompt.value = sampled.prompt;
    measurePrompt();
    prompt.focus();
    prompt.scrollTop = prompt.scrollHeight;
  }

  function restart() {
    turns = [];
    answers.replaceChildren();
    buttons.restart.hidden = true;
    prompt.focus();
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      send();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
  buttons.compare.addEventListener("click", compare);
  buttons.stop.addEventListener("click", () => running?.abort());
  buttons.restart.addEventListener("click", restart);
  prompt.addEventListener("input", measurePrompt);
  for (const button of document.querySelectorAll("[data-sample]")) {
    button.addEventListener("click", () => take(button.dataset.sample));
  }
  for (const radio of document.querySelectorAll("[name=kind]")) {
    radio.addEventListener("change", () => {
      put(get("prompt-label"), kind() === "chat" ? "Message" : "Prompt");
      restart();
    });
  }
  get("tier").addEventListener("input", () => put(get("tier-value"), get("tier").value));
  get("codec").addEventListener("change", () => {
    get("tier").disabled = !TRANSFORMS.includes(get("codec").value);
  });
  get("key").addEventListener("change", () => setKey(get("key").value.trim()));
  prompt.value = sample("short", "completion").prompt;
  measurePrompt();
}
