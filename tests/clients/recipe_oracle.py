"""DeepSeek's own library as an oracle: what it says of bodies, and the events that it makes of a model's text.

A JSON object comes on stdin: `bodies`, of chats, and `text`, what a model wrote after <think>. A JSON object goes to
stdout: `verdicts`, null for a body that it takes and its message for others, and `events` by dialect.
"""

import json
import sys

import deepseek_recipe as recipe

MODEL = "DeepSeek-V4-Pro"


def verdict(body):
    options = recipe.ConversionOptions(
        default_thinking_mode=False, reasoning_content_behavior=recipe.ReasoningContentBehavior.Reject
    )
    try:
        recipe.ChatCompletionRequest({**body, "model": MODEL}).convert(options)
    except ValueError as error:
        return str(error)
    except recipe.ConversionError as error:
        try:
            return json.loads(error.body)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            return error.body
    return None


def events(generator, text):
    options = recipe.ParsingOptions(thinking_initial_stage=recipe.ThinkingInitialStage.ReasoningStart)
    processor = recipe.StreamProcessor(generator, options)
    pieces = [recipe.InferenceChunk.ready(prompt_usage=recipe.PromptUsage(prompt_tokens=9))]
    pieces += [recipe.InferenceChunk.text(character, 1) for character in text]
    pieces.append(recipe.InferenceChunk.finish(recipe.InferenceFinishReason.Stop))
    found = [event for piece in pieces for event in processor.push(piece)]
    return [json.loads(event.to_json()) for event in (*found, *processor.finish())]


def generators():
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    chat = recipe.ChatCompletionRequest(body).convert(recipe.ConversionOptions())
    yield "chat", recipe.ChatCompletionRequest.chunk_generator(chat, "id", MODEL)
    yield "messages", recipe.MessagesChunkGenerator("id", MODEL, True)
    response = recipe.ResponsesRequest({"model": MODEL, "input": "hi"}).convert(recipe.ConversionOptions())
    yield "responses", recipe.ResponsesRequest.chunk_generator(response, "id", MODEL)


asked = json.load(sys.stdin)
answer = {
    "verdicts": [verdict(body) for body in asked["bodies"]],
    "events": {dialect: events(generator, asked["text"]) for dialect, generator in generators()},
}
sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
