// An answer that keeps to a JSON schema, read as an object.
//
//   npm install openai
//   node json_schema.mjs
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.BALEEN_URL ?? "http://127.0.0.1:8000"}/v1`,
  apiKey: process.env.BALEEN_API_KEY ?? "none",
});

const schema = {
  type: "object",
  properties: { city: { type: "string" }, age: { type: "integer" } },
  required: ["city", "age"],
  additionalProperties: false,
};

const completion = await client.chat.completions.create({
  model: "deepseek-v3.2",
  messages: [{ role: "user", content: 'Extract the data: The city is "Oslo". The age is "42".' }],
  response_format: { type: "json_schema", json_schema: { name: "person", strict: true, schema } },
  max_tokens: 200,
  temperature: 0,
});

const { message, finish_reason } = completion.choices[0];
try {
  console.log(JSON.parse(message.content));
} catch {
  // max_tokens may end an answer before it is whole
  console.log(`no whole object, ended by ${finish_reason}: ${message.content}`);
}
