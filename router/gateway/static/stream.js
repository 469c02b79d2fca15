// Server-sent events of one answer, as they come. Owns no state of the page.

export async function failure(response) {
  // an error body as an error, in whatever form it came; doc: the page that explains it
  const text = await response.text();
  try {
    const body = JSON.parse(text);
    return Object.assign(new Error(body.error?.message ?? body.message ?? text), { doc: body.error?.doc });
  } catch {
    return new Error(text || `HTTP ${response.status}`);
  }
}

export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The connection ended before the answer did.");
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      // lines that begin with a colon only keep the connection open
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message ?? "The answer failed.");
      yield event;
    }
  }
}

export function addDelta(message, delta) {
  // what a delta says, added to the message of the assistant that it is a part of
  const thought = delta.reasoning_content ?? delta.reasoning;
  if (thought) message.reasoning_content = (message.reasoning_content ?? "") + thought;
  if (delta.content) message.content = (message.content ?? "") + delta.content;
  for (const part of delta.tool_calls ?? []) {
    message.tool_calls ??= [];
    const call = (message.tool_calls[part.index] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
    if (part.id) call.id = part.id;
    if (part.function?.name) call.function.name += part.function.name;
    if (part.function?.arguments) call.function.arguments += part.function.arguments;
  }
}
