// The request of the page as a program: curl, Python, JavaScript. The key is never among it.

function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

function python(value, depth = 0) {
  const pad = "    ".repeat(depth + 1);
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) {
    return value.length ? `[\n${value.map((one) => `${pad}${python(one, depth + 1)},\n`).join("")}${"    ".repeat(depth)}]` : "[]";
  }
  if (typeof value === "object") {
    const rows = Object.entries(value).map(([key, one]) => `${pad}${JSON.stringify(key)}: ${python(one, depth + 1)},\n`);
    return rows.length ? `{\n${rows.join("")}${"    ".repeat(depth)}}` : "{}";
  }
  return JSON.stringify(value);
}

export function snippet(kind, origin, body) {
  if (kind === "curl") {
    return [
      `curl -N ${origin}/v1/chat/completions \\`,
      `  -H "Authorization: Bearer $BALEEN_API_KEY" -H "Content-Type: application/json" \\`,
      `  -d ${quoted(JSON.stringify(body, null, 2))}`,
    ].join("\n");
  }
  const { thinking, ...known } = body;
  if (kind === "python") {
    const options = Object.entries(known).map(([name, value]) => `    ${name}=${python(value, 1)},`);
    if (thinking) options.push(`    extra_body={"thinking": ${python(thinking, 1)}},`);
    return [
      "import os", "", "from openai import OpenAI", "",
      `client = OpenAI(base_url=${JSON.stringify(`${origin}/v1`)}, api_key=os.environ.get("BALEEN_API_KEY", "none"))`,
      "stream = client.chat.completions.create(", ...options, ")",
      "for chunk in stream:",
      "    for choice in chunk.choices:",
      `        print(getattr(choice.delta, "reasoning_content", None) or choice.delta.content or "", end="", flush=True)`,
    ].join("\n");
  }
  return [
    `import OpenAI from "openai";`, "",
    `const client = new OpenAI({ baseURL: ${JSON.stringify(`${origin}/v1`)}, apiKey: process.env.BALEEN_API_KEY ?? "none" });`,
    `const stream = await client.chat.completions.create(${JSON.stringify(body, null, 2)});`,
    "for await (const chunk of stream) {",
    "  for (const { delta } of chunk.choices) process.stdout.write(delta.reasoning_content ?? delta.content ?? \"\");",
    "}",
  ].join("\n");
}
