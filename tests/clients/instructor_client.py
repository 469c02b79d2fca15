"""What Instructor makes of the gateway: facts as JSON. It has no loop of tools: its tools are the schemas asked for."""

import json
import sys

import instructor
import openai
from pydantic import BaseModel

URL = sys.argv[1]


class City(BaseModel):
    """A city and its temperature."""

    city: str
    degrees: int


def client(mode, **options):
    settings = {"max_retries": 0, "timeout": 30, **options}
    return instructor.from_openai(openai.OpenAI(base_url=f"{URL}/v1", api_key="none", **settings), mode=mode)


def create(one, text, **options):
    settings = {"model": "deepseek-chat", "response_model": None, "max_retries": 0, **options}
    return one.chat.completions.create(messages=[{"role": "user", "content": text}], **settings)


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


def failure(one, text, **options):
    try:
        create(one, text, **options)
    except Exception as error:
        return [type(error).__name__, getattr(error, "status_code", None)]
    return "none"


tools = client(instructor.Mode.TOOLS)
modes = (instructor.Mode.TOOLS, instructor.Mode.JSON, instructor.Mode.JSON_SCHEMA, instructor.Mode.MD_JSON)
partial = list(
    tools.chat.completions.create_partial(
        model="deepseek-chat",
        response_model=City,
        messages=[{"role": "user", "content": "JSON, please"}],
        max_retries=0,
    )
)
facts = {
    "chat": shown(create(tools, "hi", model="deepseek-reasoner")),
    "stream": partial[-1].model_dump(),
    "structured": [create(client(mode), "JSON, please", response_model=City).model_dump() for mode in modes],
    "errors": {
        "wrong": failure(tools, "hi", temperature=3),
        "model": failure(tools, "hi", model="none-of-these"),
        "unavailable": failure(tools, "unavailable"),
        "refused": failure(tools, "throng"),
        "timeout": failure(client(instructor.Mode.TOOLS, timeout=0.2), "silence"),
    },
    "retried": create(client(instructor.Mode.TOOLS, max_retries=2), "crowd").choices[0].message.content,
}
sys.stdout.write(json.dumps(facts) + "\n")
