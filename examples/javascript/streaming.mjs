// A streamed chat that thinks: first what the model thought, then its answer, as they come.
//
//   npm install openai
//   node streaming.mjs
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.BALEEN_URL ?? "http://127.0.0.1:8000"}/v1`,
  apiKey: process.env.BALEEN_API_KEY ?? "none",
});

const stream = await client.chat.completions.create({
  model: "deepseek-v3.2",
  messages: [{ role: "user", content: "What is 7 + 5?" }],
  stream: true,
  stream_options: { include_usage: true },
  max_tokens: 100,
  thinking: { type: "enabled" },
});

for await (const chunk of stream) {
  for (const { delta, finish_reason } of chunk.choices) {
    process.stdout.write(delta.reasoning_content || delta.content || "");
    if (finish_reason) console.log(`\nended by ${finish_reason}`);
  }
  if (chunk.usage) console.log(`${chunk.usage.completion_tokens} tokens`);
}
