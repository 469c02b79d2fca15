// What the official client for JavaScript makes of the gateway whose address is the first argument: facts as JSON.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const url = process.argv[2];
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0, timeout: 30000 });
const ask = (content) => [{ role: "user", content }];
const usageOf = (usage) => [
  usage.prompt_tokens,
  usage.completion_tokens,
  usage.prompt_tokens_details.cached_tokens,
  usage.completion_tokens_details.reasoning_tokens,
];
const facts = {};

const whole = await client.chat.completions.create({ model: "deepseek-reasoner", messages: ask("hi") });
const { content, reasoning_content } = whole.choices[0].message;
facts.chat = { content, reasoning: reasoning_content, usage: usageOf(whole.usage) };

facts.stream = { content: "", reasoning: "" };
const stream = await client.chat.completions.create({
  model: "deepseek-reasoner",
  messages: ask("hi"),
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  facts.stream.content += chunk.choices[0]?.delta.content ?? "";
  facts.stream.reasoning += chunk.choices[0]?.delta.reasoning_content ?? "";
  if (chunk.usage) facts.stream.usage = usageOf(chunk.usage);
}

const calls = [];
const runner = client.chat.completions.runTools({
  model: "deepseek-reasoner",
  messages: ask("What weather?"),
  stream: true,
  tools: [
    {
      type: "function",
      function: {
        name: "get_weather",
        parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
        parse: JSON.parse,
        function: (given) => {
          calls.push(given);
          return "12 degrees";
        },
      },
    },
  ],
});
facts.tools = { content: await runner.finalContent(), calls };

const City = z.object({ city: z.string(), degrees: z.number() });
const parsed = await client.chat.completions.parse({
  model: "deepseek-chat",
  messages: ask("JSON, please"),
  response_format: zodResponseFormat(City, "city"),
});
facts.structured = [parsed.choices[0].message.parsed];

facts.errors = {};
const failing = async (name, promise) => {
  facts.errors[name] = await promise.then(() => "none", (error) => [error.constructor.name, error.status ?? null]);
};
const create = (content, options = {}, more = {}) =>
  client.chat.completions.create({ model: "deepseek-chat", messages: ask(content), ...more }, options);
await failing("wrong", create("hi", {}, { temperature: 3 }));
await failing("model", create("hi", {}, { model: "none-of-these" }));
await failing("unavailable", create("unavailable"));
await failing("refused", create("throng"));
await failing("timeout", create("silence", { timeout: 200 }));
facts.retried = (await create("crowd", { maxRetries: 2 })).choices[0].message.content;
const controller = new AbortController();
const aborted = create("silence", { signal: controller.signal }, { stream: true });
aborted.then(() => controller.abort());
await failing("abort", aborted.then(async (events) => {
  for await (const _ of events);
  throw new OpenAI.APIUserAbortError();
}));

console.log(JSON.stringify(facts));
