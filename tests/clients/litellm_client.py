"""What LiteLLM makes of the gateway: facts as JSON. Its providers for DeepSeek and for hosted vLLM."""

import json
import sys

import litellm

URL = sys.argv[1]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
    "required": ["city", "degrees"],
    "additionalProperties": False,
}


def ask(text):
    return [{"role": "user", "content": text}]


def complete(model, messages, **options):
    settings = {"api_base": f"{URL}/v1", "api_key": "none", "max_retries": 0, "timeout": 30, **options}
    return litellm.completion(model=model, messages=messages, **settings)


def usage_of(usage):
    return [
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens_details.cached_tokens,
        usage.completion_tokens_details.reasoning_tokens,
    ]


def shown(answer):
    message = answer.choices[0].message
    return {"content": message.content, "reasoning": message.reasoning_content, "usage": usage_of(answer.usage)}


def loop(model):
    messages, calls = ask("What weather?"), []
    while True:
        message = complete(model, messages, tools=[TOOL]).choices[0].message
        messages.append(message)
        if not message.tool_calls:
            return {"content": message.content, "calls": calls}
        for call in message.tool_calls:
            calls.append(json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "12 degrees"})


def failure(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, getattr(error, "status_code", None)]
    return "none"


def facts_of(provider):
    thinking, model = f"{provider}/deepseek-reasoner", f"{provider}/deepseek-chat"
    chunks = list(complete(thinking, ask("hi"), stream=True, stream_options={"include_usage": True}))
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
    structured = complete(model, ask("JSON, please"), response_format=form)
    return {
        "chat": shown(complete(thinking, ask("hi"))),
        "stream": shown(litellm.stream_chunk_builder(chunks)),
        "tools": loop(thinking),
        "structured": [json.loads(structured.choices[0].message.content)],
        "errors": {
            "wrong": failure(lambda: complete(model, ask("hi"), temperature=3)),
            "model": failure(lambda: complete(f"{provider}/none-of-these", ask("hi"))),
            "unavailable": failure(lambda: complete(model, ask("unavailable"))),
            "refused": failure(lambda: complete(model, ask("throng"))),
            "timeout": failure(lambda: complete(model, ask("silence"), timeout=0.2)),
        },
        "retried": complete(model, ask("crowd"), num_retries=2).choices[0].message.content,
    }


sys.stdout.write(json.dumps({provider: facts_of(provider) for provider in ("deepseek", "hosted_vllm")}) + "\n")
