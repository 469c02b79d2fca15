// What Vercel's AI SDK makes of the gateway, by its provider for what is compatible with OpenAI and the one for DeepSeek.
import { createDeepSeek } from "@ai-sdk/deepseek";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const url = process.argv[2];
const City = z.object({ city: z.string(), degrees: z.number() });
const providers = {
  compatible: createOpenAICompatible({
    name: "baleen",
    baseURL: `${url}/v1`,
    apiKey: "none",
    includeUsage: true,
    supportsStructuredOutputs: true,
  }),
  deepseek: createDeepSeek({ baseURL: url, apiKey: "none" }),
};
const usageOf = (usage) => [
  usage.inputTokens,
  usage.outputTokens,
  usage.inputTokenDetails.cacheReadTokens,
  usage.outputTokenDetails.reasoningTokens,
];

const facts = {};
for (const [name, provider] of Object.entries(providers)) {
  const thinking = provider("deepseek-reasoner");
  const model = provider("deepseek-chat");
  const one = (facts[name] = {});

  const whole = await generateText({ model: thinking, prompt: "hi" });
  one.chat = { content: whole.text, reasoning: whole.reasoningText, usage: usageOf(whole.usage) };

  one.stream = { content: "", reasoning: "" };
  const stream = streamText({ model: thinking, prompt: "hi" });
  for await (const part of stream.fullStream) {
    if (part.type === "text-delta") one.stream.content += part.text;
    if (part.type === "reasoning-delta") one.stream.reasoning += part.text;
  }
  one.stream.usage = usageOf(await stream.usage);

  const calls = [];
  const loop = streamText({
    model: thinking,
    prompt: "What weather?",
    stopWhen: stepCountIs(3),
    tools: {
      get_weather: tool({
        inputSchema: z.object({ city: z.string() }),
        execute: (given) => {
          calls.push(given);
          return "12 degrees";
        },
      }),
    },
  });
  one.tools = { content: await loop.text, calls };

  const structured = await generateText({ model, prompt: "JSON, please", output: Output.object({ schema: City }) });
  one.structured = [structured.output];

  one.errors = {};
  const failing = async (kind, options) => {
    one.errors[kind] = await generateText({ model, maxRetries: 0, ...options }).then(
      () => "none",
      (error) => [error.name, error.statusCode ?? null],
    );
  };
  await failing("wrong", { prompt: "hi", temperature: 3 });
  await failing("model", { prompt: "hi", model: provider("none-of-these") });
  await failing("unavailable", { prompt: "unavailable" });
  await failing("refused", { prompt: "throng" });
  await failing("timeout", { prompt: "silence", abortSignal: AbortSignal.timeout(200) });
  one.retried = (await generateText({ model, prompt: "crowd", maxRetries: 2 })).text;
}
console.log(JSON.stringify(facts));
