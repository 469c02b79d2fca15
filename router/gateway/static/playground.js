// The playground: one conversation, its settings, and what each answer took.

import { cost, shown } from "/pages/money.js";
import { snippet } from "/pages/snippets.js";
import { addDelta, events, failure } from "/pages/stream.js";

const at = (id) => document.getElementById(id);
const RANGES = ["temperature", "top_p", "frequency_penalty", "presence_penalty"];

let messages = [];
let running = null;
let prices = { currency: "", data: [] };

function element(kind, properties = {}, ...children) {
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...children);
  return made;
}

function headers() {
  const key = at("key").value.trim();
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

function parsed(id, what) {
  try {
    return JSON.parse(at(id).value);
  } catch (error) {
    throw new Error(`${what} cannot be read: ${error.message}`);
  }
}

function request(conversation) {
  const system = at("system").value.trim();
  const body = {
    model: at("model").value,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...conversation],
    stream: true,
    stream_options: { include_usage: true },
    thinking: { type: at("thinking").checked ? "enabled" : "disabled" },
    max_tokens: Number(at("max_tokens").value),
  };
  for (const name of RANGES) body[name] = Number(at(name).value);
  if (at("seed").value !== "") body.seed = Number(at("seed").value);
  if (at("stop_text").value) body.stop = [at("stop_text").value];
  const format = at("format").value;
  if (format === "json_object") body.response_format = { type: format };
  if (format === "json_schema") {
    body.response_format = { type: format, json_schema: { name: "answer", schema: parsed("schema", "The schema") } };
  }
  if (at("use_tools").checked) body.tools = parsed("tools", "The tools");
  return body;
}

class Shown {
  // one message on the page
  constructor(role) {
    this.reasoning = element("p");
    this.summary = element("summary", { textContent: "Thinking" });
    this.thoughts = element("details", { className: "reasoning", hidden: true, open: true }, this.summary, this.reasoning);
    this.text = element("p", { className: "text" });
    this.calls = element("div");
    this.figures = element("div", { className: "figures" });
    this.node = element("article", { className: `message ${role}` }, element("div", { className: "role", textContent: role }), this.thoughts, this.text, this.calls, this.figures);
    at("messages").append(this.node);
    this.follow();
  }

  follow() {
    const list = at("messages");
    list.scrollTop = list.scrollHeight;
  }

  update(message) {
    const list = at("messages");
    const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 80;
    this.thoughts.hidden = !message.reasoning_content;
    this.reasoning.textContent = message.reasoning_content ?? "";
    this.text.textContent = message.content ?? "";
    this.calls.replaceChildren(...(message.tool_calls ?? []).map((call) =>
      element("div", { className: "call" }, element("code", { textContent: `${call.function.name}(${call.function.arguments})` }))));
    if (isAtEnd) this.follow();
  }

  note(text) {
    this.node.append(element("p", { className: "role", textContent: text }));
    this.follow();
  }

  fail(text, doc) {
    const line = element("p", { className: "error", textContent: text });
    if (doc) line.append(" ", element("a", { href: doc, target: "_blank", textContent: "What to do" }));
    this.node.append(line);
    this.follow();
  }

  thought(seconds) {
    this.summary.textContent = `Thought for ${seconds.toFixed(1)} s`;
  }

  settle(message, isJson) {
    // the answer is whole: a caret no more, and JSON so that it can be read
    this.node.classList.remove("pending");
    if (!isJson) return;
    try {
      this.text.textContent = JSON.stringify(JSON.parse(message.content), null, 2);
    } catch {
      // it stays as it came
    }
  }

  tell(...figures) {
    this.figures.replaceChildren(...figures.filter(Boolean).map((text) => element("span", { textContent: text })));
  }

  askForResults(message) {
    const boxes = message.tool_calls.map((call) => element("textarea", { rows: 2, placeholder: `Result of ${call.function.name}` }));
    const send = element("button", { type: "button", textContent: "Send results" });
    send.addEventListener("click", () => {
      send.disabled = true;
      message.tool_calls.forEach((call, place) => messages.push({ role: "tool", tool_call_id: call.id, content: boxes[place].value }));
      answer();
    });
    this.calls.append(...boxes, send);
    this.follow();
  }
}

function priceOf(model) {
  const named = (name) => prices.data.find((price) => price.model.toLowerCase() === name?.toLowerCase());
  return named(model) ?? named(at("model").dataset.first);
}

function tellFigures(view, times, usage, ranks) {
  const decodeS = (times.last - times.first) / 1000;
  const after = (usage?.completion_tokens ?? 0) - 1;
  const price = priceOf(at("model").value);
  const cached = usage && (usage.prompt_cache_hit_tokens ?? usage.prompt_tokens_details?.cached_tokens ?? 0);
  view.tell(
    times.first && `first token ${((times.first - times.start) / 1000).toFixed(2)} s`,
    after > 0 && decodeS > 0 && `${(after / decodeS).toFixed(1)} tokens/s`,
    usage && `prompt ${usage.prompt_tokens}, of it ${cached} cached`,
    usage && `answer ${usage.completion_tokens}`,
    usage && price && `price ${shown(cost(usage, price), prices.currency)}`,
    ranks && `ranks ${ranks}`,
  );
}

async function ranksOf(id) {
  const response = await fetch(`/v1/requests/${encodeURIComponent(id)}`, { headers: headers() });
  if (!response.ok) return "";
  const told = await response.json();
  return told.ranks.map((one) => `${one.role} ${one.rank}`).join(", ");
}

async function answer() {
  const view = new Shown("assistant");
  const isJson = at("format").value !== "text";
  view.node.classList.add("pending");
  view.text.classList.toggle("json", isJson);
  const message = { role: "assistant", content: "" };
  const times = { start: performance.now(), first: 0, last: 0 };
  let usage = null, finish = "", id = "";
  running = new AbortController();
  at("send").hidden = true;
  at("stop").hidden = false;
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(request(messages)), signal: running.signal,
    });
    if (!response.ok) throw await failure(response);
    for await (const event of events(response)) {
      id = event.id ?? id;
      usage = event.usage ?? usage;
      for (const choice of event.choices ?? []) {
        const delta = choice.delta ?? {};
        if ((delta.content || delta.tool_calls) && message.reasoning_content && !times.thought) {
          times.thought = performance.now();
          view.thought((times.thought - times.first) / 1000);
        }
        if (delta.content || delta.reasoning_content || delta.tool_calls) {
          times.last = performance.now();
          times.first ||= times.last;
        }
        addDelta(message, delta);
        finish = choice.finish_reason ?? finish;
      }
      view.update(message);
      tellFigures(view, times, usage, "");
    }
    if (finish === "length") view.note("The answer ended at the most tokens.");
    if (finish === "insufficient_system_resource") view.fail("The cluster could not finish this answer.");
  } catch (error) {
    if (error.name === "AbortError") view.note("Stopped.");
    else view.fail(error.message, error.doc);
  } finally {
    view.settle(message, isJson);
    running = null;
    at("send").hidden = false;
    at("stop").hidden = true;
  }
  if (message.content || message.reasoning_content || message.tool_calls) messages.push(message);
  tellFigures(view, times, usage, "");
  if (message.tool_calls && finish === "tool_calls") view.askForResults(message);
  if (id) tellFigures(view, times, usage, await ranksOf(id).catch(() => ""));
}

async function learn() {
  const get = async (path) => {
    const response = await fetch(path, { headers: headers() });
    if (!response.ok) throw await failure(response);
    return response.json();
  };
  try {
    const models = (await get("/v1/models")).data.map((model) => model.id);
    const chosen = at("model").value;
    at("model").replaceChildren(...models.map((name) => element("option", { textContent: name })));
    at("model").dataset.first = models[0] ?? "";
    if (models.includes(chosen)) at("model").value = chosen;
    prices = await get("/v1/prices");
    at("copied").textContent = "";
  } catch (error) {
    at("copied").textContent = error.message;
  }
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("prompt").value;
  if (running || !text.trim()) return;
  const message = { role: "user", content: text };
  messages.push(message);
  new Shown("user").update(message);
  at("prompt").value = "";
  answer();
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("composer").requestSubmit();
  }
});
at("stop").addEventListener("click", () => running?.abort());
at("clear").addEventListener("click", () => {
  running?.abort();
  messages = [];
  at("messages").replaceChildren();
  at("prompt").focus();
});
at("toggle").addEventListener("click", () => {
  const open = at("settings").classList.toggle("open");
  at("toggle").setAttribute("aria-expanded", String(open));
  at("toggle").textContent = open ? "Close" : "Settings";
});
at("format").addEventListener("change", () => { at("schema_box").hidden = at("format").value !== "json_schema"; });
at("use_tools").addEventListener("change", () => { at("tools_box").hidden = !at("use_tools").checked; });
for (const name of RANGES) {
  const range = at(name);
  const show = () => { range.previousElementSibling.value = range.value; };
  range.addEventListener("input", show);
  show();
}
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    try {
      const draft = at("prompt").value.trim();
      const body = request([...messages, ...(draft ? [{ role: "user", content: draft }] : [])]);
      await navigator.clipboard.writeText(snippet(button.dataset.copy, location.origin, body));
      at("copied").textContent = "Copied.";
    } catch (error) {
      at("copied").textContent = error.message;
    }
  });
}
at("key").value = sessionStorage.getItem("baleen-key") ?? "";
at("key").addEventListener("change", () => {
  sessionStorage.setItem("baleen-key", at("key").value);
  learn();
});
learn();
