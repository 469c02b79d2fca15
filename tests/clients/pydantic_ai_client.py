"""What Pydantic AI makes of the gateway: facts as JSON."""

import asyncio
import json
import sys

from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.messages import ThinkingPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.deepseek import DeepSeekProvider
from pydantic_ai.providers.openai import OpenAIProvider

URL = sys.argv[1]


class City(BaseModel):
    """A city and its temperature."""

    city: str
    degrees: int


def model(name, provider=DeepSeekProvider, **options):
    settings = {"max_retries": 0, "timeout": 30, **options}
    client = AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", **settings)
    return OpenAIChatModel(name, provider=provider(openai_client=client))


def reasoning_of(messages):
    return "".join(part.content for part in messages[-1].parts if isinstance(part, ThinkingPart))


def usage_of(usage):
    return [usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.details["reasoning_tokens"]]


def shown(result, content):
    usage = result.usage() if callable(result.usage) else result.usage
    return {"content": content, "reasoning": reasoning_of(result.all_messages()), "usage": usage_of(usage)}


async def loop(thinking):
    calls = []
    agent = Agent(thinking)

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """Temperature in a city."""
        calls.append({"city": city})
        return "12 degrees"

    return {"content": (await agent.run("What weather?")).output, "calls": calls}


async def failure(one, text, settings=None):
    try:
        await Agent(one).run(text, model_settings=settings)
    except Exception as error:
        return [type(error).__name__, getattr(error, "status_code", None)]
    return "none"


async def main():
    thinking, plain = model("deepseek-reasoner"), model("deepseek-chat")
    whole = await Agent(thinking).run("hi")
    async with Agent(thinking).run_stream("hi") as stream:
        text = "".join([part async for part in stream.stream_text(delta=True)])
    native = model("deepseek-chat", provider=OpenAIProvider)
    outputs = [(plain, ToolOutput(City)), (plain, PromptedOutput(City)), (native, NativeOutput(City))]
    return {
        "chat": shown(whole, whole.output),
        "stream": shown(stream, text),
        "tools": await loop(thinking),
        "structured": [
            (await Agent(one, output_type=output).run("JSON, please")).output.model_dump() for one, output in outputs
        ],
        "errors": {
            "wrong": await failure(plain, "hi", {"temperature": 3}),
            "model": await failure(model("none-of-these"), "hi"),
            "unavailable": await failure(plain, "unavailable"),
            "refused": await failure(plain, "throng"),
            "timeout": await failure(model("deepseek-chat", timeout=0.2), "silence"),
        },
        "retried": (await Agent(model("deepseek-chat", max_retries=2)).run("crowd")).output,
    }


sys.stdout.write(json.dumps(asyncio.run(main())) + "\n")
