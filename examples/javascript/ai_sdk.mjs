// Vercel's AI SDK, through its provider for whatever is compatible with OpenAI.
//
//   npm install ai @ai-sdk/openai-compatible
//   node ai_sdk.mjs
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { streamText } from "ai";

const baleen = createOpenAICompatible({
  name: "baleen",
  baseURL: `${process.env.BALEEN_URL ?? "http://127.0.0.1:8000"}/v1`,
  apiKey: process.env.BALEEN_API_KEY ?? "none",
  includeUsage: true,
});

const { fullStream, usage } = streamText({
  model: baleen("DeepSeek-V3.2-Exp-thinking"),
  prompt: "What is 7 + 5?",
  maxOutputTokens: 100,
});
for await (const part of fullStream) {
  if (part.type === "reasoning-delta" || part.type === "text-delta") process.stdout.write(part.text);
  if (part.type === "error") throw part.error;
}
console.log(`\n${(await usage).outputTokens} tokens`);
