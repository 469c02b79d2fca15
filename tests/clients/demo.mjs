// What OpenAI's client and Vercel's AI SDK make of the demo model's own thoughts, calls and JSON: facts by client.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const url = process.argv[2];
const TIMER = 'Set a timer for "17" minutes.';
const LARS = 'Reply in JSON. The "name" is "Lars". The "age" is 72. The "city" is "Beijing".';
const Person = z.object({ name: z.string(), age: z.int(), city: z.string() });
const Minutes = z.object({ minutes: z.int() });
const facts = { openai: {}, ai_sdk: {} };
const run = (calls) => (given) => {
  calls.push(given);
  return JSON.stringify({ set: true });
};

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0, timeout: 60000 });
const parameters = { type: "object", properties: { minutes: { type: "integer" } }, required: ["minutes"] };
for (const [name, more] of [["free", {}], ["strict", { strict: true }]]) {
  const calls = [];
  const runner = client.chat.completions.runTools({
    model: "deepseek-chat",
    messages: [{ role: "user", content: TIMER }],
    stream: name === "free",
    temperature: 0,
    max_tokens: 200,
    tools: [
      {
        type: "function",
        function: { name: "set_timer", description: "Set a timer", parameters, parse: JSON.parse, function: run(calls), ...more },
      },
    ],
  });
  facts.openai[name] = { content: await runner.finalContent(), calls };
}
const parsed = await client.chat.completions.parse({
  model: "deepseek-reasoner",
  messages: [{ role: "user", content: LARS }],
  seed: 1,
  max_tokens: 200,
  response_format: zodResponseFormat(Person, "person"),
});
const { message } = parsed.choices[0];
facts.openai.structured = { object: message.parsed, thought: message.reasoning_content };

const provider = createOpenAICompatible({
  name: "baleen",
  baseURL: `${url}/v1`,
  apiKey: "none",
  supportsStructuredOutputs: true,
});
for (const [name, toolChoice] of [["free", "auto"], ["required", "required"]]) {
  const calls = [];
  const loop = streamText({
    model: provider("deepseek-chat"),
    prompt: TIMER,
    temperature: 0,
    maxOutputTokens: 200,
    stopWhen: stepCountIs(3),
    // it would have to call for ever
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "auto" : toolChoice }),
    tools: { set_timer: tool({ description: "Set a timer", inputSchema: Minutes, execute: run(calls) }) },
  });
  facts.ai_sdk[name] = { content: await loop.text, calls };
}
const structured = await generateText({
  model: provider("deepseek-reasoner"),
  prompt: LARS,
  seed: 1,
  maxOutputTokens: 200,
  output: Output.object({ schema: Person }),
});
facts.ai_sdk.structured = { object: structured.output, thought: structured.reasoningText };
console.log(JSON.stringify(facts));
