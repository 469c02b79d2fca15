"""What LangChain makes of the gateway, by its packages for OpenAI and for DeepSeek: facts as JSON."""

import json
import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_deepseek import ChatDeepSeek
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

URL = sys.argv[1]


class City(BaseModel):
    """A city and its temperature."""

    city: str
    degrees: int


@tool
def get_weather(city: str) -> str:
    """Temperature in a city."""
    return "12 degrees"


def usage_of(usage):
    return [
        usage["input_tokens"],
        usage["output_tokens"],
        usage["input_token_details"]["cache_read"],
        usage["output_token_details"]["reasoning"],
    ]


def shown(message):
    reasoning = message.additional_kwargs.get("reasoning_content")
    return {"content": message.content, "reasoning": reasoning, "usage": usage_of(message.usage_metadata)}


def streamed(model):
    whole = None
    for chunk in model.stream("hi"):
        whole = chunk if whole is None else whole + chunk
    return shown(whole)


def loop(model):
    bound, messages, calls = model.bind_tools([get_weather]), [HumanMessage("What weather?")], []
    while True:
        message = bound.invoke(messages)
        messages.append(message)
        if not message.tool_calls:
            return {"content": message.content, "calls": calls}
        for call in message.tool_calls:
            calls.append(call["args"])
            messages.append(ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"]))


def failure(model, text):
    try:
        model.invoke(text)
    except Exception as error:
        return [type(error).__name__, getattr(error, "status_code", None)]
    return "none"


def facts_of(make, methods):
    model, thinking = make("deepseek-chat"), make("deepseek-reasoner")
    return {
        "chat": shown(thinking.invoke("hi")),
        "stream": streamed(thinking),
        "tools": loop(thinking),
        "structured": [
            model.with_structured_output(City, method=method).invoke("JSON, please").model_dump() for method in methods
        ],
        "errors": {
            "wrong": failure(make("deepseek-chat", temperature=3), "hi"),
            "model": failure(make("none-of-these"), "hi"),
            "unavailable": failure(model, "unavailable"),
            "refused": failure(model, "throng"),
            "timeout": failure(make("deepseek-chat", timeout=0.2), "silence"),
        },
        "retried": make("deepseek-chat", max_retries=2).invoke("crowd").content,
    }


def with_openai(model, **options):
    return ChatOpenAI(model=model, base_url=f"{URL}/v1", api_key="none", **{"max_retries": 0, "timeout": 30, **options})


def with_deepseek(model, **options):
    settings = {"max_retries": 0, "timeout": 30, "stream_usage": True, **options}
    return ChatDeepSeek(model=model, api_base=f"{URL}/v1", api_key="none", **settings)


facts = {
    "openai": facts_of(with_openai, ["json_schema", "function_calling", "json_mode"]),
    "deepseek": facts_of(with_deepseek, ["function_calling", "json_mode"]),
}
sys.stdout.write(json.dumps(facts) + "\n")
