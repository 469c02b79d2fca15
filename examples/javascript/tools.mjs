// A loop of tools with thinking: the model calls, the program answers, until the model has what it needs.
//
//   npm install openai
//   node tools.mjs
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.BALEEN_URL ?? "http://127.0.0.1:8000"}/v1`,
  apiKey: process.env.BALEEN_API_KEY ?? "none",
});

// stands for something that knows
const getWeather = ({ city }) => JSON.stringify({ weather: "sunny", temperature: 21, city });

const tool = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the weather in a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

const messages = [{ role: "user", content: 'What is the weather in "Lisbon"?' }];
for (let round = 0; round < 4; round++) {
  const completion = await client.chat.completions.create({
    model: "deepseek-v3.2",
    messages,
    tools: [tool],
    max_tokens: 200,
    temperature: 0,
    thinking: { type: "enabled" },
  });
  const { message } = completion.choices[0];
  console.log(`thought: ${message.reasoning_content}`);
  // the whole message goes back, with what was thought before the call
  messages.push(message);
  if (!message.tool_calls) break;
  for (const call of message.tool_calls) {
    console.log(`calls ${call.function.name} with ${call.function.arguments}`);
    const content = getWeather(JSON.parse(call.function.arguments));
    messages.push({ role: "tool", tool_call_id: call.id, content });
  }
}
console.log(`answer: ${messages.at(-1).content}`);
