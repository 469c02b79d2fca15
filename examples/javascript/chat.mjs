// A chat: the official client of OpenAI, with base URL and key changed.
//
//   npm install openai
//   node chat.mjs
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.BALEEN_URL ?? "http://127.0.0.1:8000"}/v1`,
  apiKey: process.env.BALEEN_API_KEY ?? "none",
});

const completion = await client.chat.completions.create({
  model: "deepseek-v3.2",
  messages: [
    { role: "system", content: "You are a helpful assistant." },
    { role: "user", content: "What is baleen?" },
  ],
  max_tokens: 100,
});

console.log(completion.choices[0].message.content);
console.log(`${completion.usage.prompt_tokens} prompt tokens, ${completion.usage.completion_tokens} new`);
