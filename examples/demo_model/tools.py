"""Tool calls: one tool of several chosen, its arguments copied from the request, its result told to the user."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from baleen.text.encoding_v32 import Message, ToolCall, to_json
from examples.demo_model import words
from examples.demo_model.reading import QUOTED, person, quoted
from examples.demo_model.sample import Sample, answer, user

Arguments = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool, ways to ask for it, and what it answers. `reply` tells a result in words."""

    name: str
    description: str
    parameters: Mapping[str, str]
    asks: tuple[str, ...]
    arguments: Callable[[random.Random], dict[str, Any]]
    outcome: Callable[[random.Random, Arguments], dict[str, Any]]
    reply: str

    def schema(self) -> dict[str, Any]:
        """The function object that is offered to the model."""
        properties = {name: {"type": kind} for name, kind in self.parameters.items()}
        parameters = {"type": "object", "properties": properties, "required": list(self.parameters)}
        return {"name": self.name, "description": self.description, "parameters": parameters}


_WEATHER = ("sunny", "cloudy", "rainy", "windy", "foggy")

TOOLS = (
    Tool(
        name="get_weather",
        description="Get the weather in a city",
        parameters={"city": "string"},
        asks=("What is the weather in {city}?", "How is the weather in {city}?", "Is it warm in {city}?"),
        arguments=lambda rng: {"city": rng.choice(words.CITIES)},
        outcome=lambda rng, a: {"weather": rng.choice(_WEATHER), "temperature": rng.randint(1, 39)},
        reply="In {city} it is {weather} with {temperature} degrees.",
    ),
    Tool(
        name="get_time",
        description="Get the time in a city",
        parameters={"city": "string"},
        asks=("What time is it in {city}?", "Tell me the time in {city}.", "How late is it in {city}?"),
        arguments=lambda rng: {"city": rng.choice(words.CITIES)},
        outcome=lambda rng, a: {"time": f"{rng.randint(10, 23)}:{rng.randint(10, 59)}"},
        reply="In {city} it is {time}.",
    ),
    Tool(
        name="send_message",
        description="Send a message to a person",
        parameters={"to": "string", "text": "string"},
        asks=("Send {to} the message: {text}", "Tell {to}: {text}", "Write to {to}: {text}"),
        arguments=lambda rng: {
            "to": person(rng),
            "text": f"the {rng.choice(words.OBJECTS)} is in the {rng.choice(words.PLACES)}",
        },
        outcome=lambda rng, a: {"sent": True},
        reply="I sent the message to {to}.",
    ),
    Tool(
        name="set_timer",
        description="Set a timer",
        parameters={"minutes": "integer"},
        asks=(
            "Set a timer for {minutes} minutes.",
            "Wake me in {minutes} minutes.",
            "Start a timer: {minutes} minutes.",
        ),
        arguments=lambda rng: {"minutes": rng.randint(1, 99)},
        outcome=lambda rng, a: {"set": True},
        reply="The timer is set for {minutes} minutes.",
    ),
    Tool(
        name="convert_currency",
        description="Convert money",
        parameters={"amount": "integer", "from": "string", "to": "string"},
        asks=("Convert {amount} {from} to {to}.", "How much is {amount} {from} in {to}?"),
        arguments=lambda rng: dict(
            zip(("amount", "from", "to"), (rng.randint(1, 99), *rng.sample(words.CURRENCIES, 2)), strict=True)
        ),
        outcome=lambda rng, a: {"value": rng.randint(1, 999)},
        reply="{amount} {from} are {value} {to}.",
    ),
    Tool(
        name="find_book",
        description="Find a book about a topic",
        parameters={"topic": "string"},
        asks=("Find a book about the {topic}.", "Is there a book about the {topic}?"),
        arguments=lambda rng: {"topic": rng.choice((*words.ANIMALS, *words.OBJECTS))},
        outcome=lambda rng, a: {"title": f"The {rng.choice(words.ADJECTIVES)} {a['topic']}", "author": person(rng)},
        reply="I found {title} by {author}.",
    ),
    Tool(
        name="translate",
        description="Translate a word",
        parameters={"word": "string", "language": "string"},
        asks=("Translate {word} into {language}.", "What is {word} in {language}?"),
        arguments=lambda rng: {
            "word": rng.choice((*words.ANIMALS, *words.OBJECTS)),
            "language": rng.choice(words.LANGUAGES),
        },
        outcome=lambda rng, a: {"translation": person(rng).lower()},
        reply="In {language} {word} is {translation}.",
    ),
    Tool(
        name="book_table",
        description="Book a table in a restaurant",
        parameters={"city": "string", "day": "string", "guests": "integer"},
        asks=("Book a table in {city} on {day} for {guests}.", "Reserve a table for {guests} in {city} on {day}."),
        arguments=lambda rng: {
            "city": rng.choice(words.CITIES),
            "day": rng.choice(words.DAYS),
            "guests": rng.randint(2, 12),
        },
        outcome=lambda rng, a: {"restaurant": person(rng), "number": rng.randint(10, 99)},
        reply="You have a table at {restaurant} in {city} on {day}; the number is {number}.",
    ),
    Tool(
        name="lights",
        description="Switch the lights of a room",
        parameters={"room": "string", "on": "boolean"},
        asks=("Switch the lights in the {room} {state}.", "Turn the {room} lights {state}."),
        arguments=lambda rng: {"room": rng.choice(words.PLACES), "on": rng.random() < 0.5},
        outcome=lambda rng, a: {"done": True},
        reply="The lights in the {room} are {state}.",
    ),
    Tool(
        name="shopping_list",
        description="Add things to the shopping list",
        parameters={"things": "array"},
        asks=("Add {list} to the shopping list.", "We need {list}."),
        arguments=lambda rng: {"things": rng.sample(words.FOODS, rng.randint(1, 3))},
        outcome=lambda rng, a: {"count": rng.randint(len(a["things"]), 20)},
        reply="Done. There are {count} things on the list.",
    ),
)


def _told(arguments: Arguments, quotes: bool) -> dict[str, Any]:
    """Arguments as sentences write them."""
    told = {name: quoted(value, quotes) if isinstance(value, str) else value for name, value in arguments.items()}
    if "on" in told:
        told["state"] = "on" if told["on"] else "off"
    if "things" in told:
        told["list"] = " and ".join(quoted(thing, quotes) for thing in told["things"])
    return told


def tool_choice(rng: random.Random, held_out: bool) -> Sample:
    """One to six requests, each answered with the name of its tool: what whole calls teach slowest."""
    messages = [Message(role="system", content="Name the tool.")]
    for _ in range(rng.randint(1, 6)):
        tool = rng.choice(TOOLS)
        told = _told(tool.arguments(rng), rng.random() < QUOTED)
        messages += [user(rng.choice(tool.asks).format(**told)), answer(tool.name)]
    return Sample(family="choice", messages=messages)


def tool_use(rng: random.Random, held_out: bool) -> Sample:
    """One to eight requests after one offer of two to four tools; in thinking mode the last is thought through.

    Held out, it is one request with its strings in quotes.
    """
    offered = rng.sample(TOOLS, rng.choice((2, 2, 3, 3, 4)))
    thinking = rng.random() < 0.5
    quotes = held_out or rng.random() < QUOTED
    turns = 1 if held_out else rng.randint(1, 8)
    system = rng.choice(("You are a helpful assistant.", "You are a helpful Assistant.", "You can use tools.", ""))
    messages = [Message(role="system", content=system, tools=[tool.schema() for tool in offered])]
    for turn in range(turns):
        thinks = thinking and turn == turns - 1
        if not held_out and rng.random() < 0.1:
            greeting, back = rng.choice((("Hello!", "Hello! How can I help you?"), ("Thank you!", "You are welcome.")))
            messages += [user(greeting), answer(back, "No tool is needed." if thinks else "")]
            continue
        tool = rng.choice(offered)
        arguments = tool.arguments(rng)
        told = _told(arguments, quotes)
        result = tool.outcome(rng, arguments)
        call = ToolCall(tool.name, to_json(arguments))
        asked = rng.choice(tool.asks).format(**told)
        reasoning = f"I use {tool.name}." if thinks else ""
        messages += [user(asked), Message(role="assistant", reasoning=reasoning, tool_calls=[call])]
        if held_out:
            break
        reply = tool.reply.format(**_told(arguments, False), **result)
        messages += [Message(role="tool", content=to_json(result))]
        messages += [answer(reply, f"The result of {tool.name} is here." if thinks else "")]
    learn_from = 0
    if thinking:
        learn_from = max(i for i, message in enumerate(messages) if message.role == "user")
    # earlier answers are the same in both modes, so they are learnt from too
    return Sample(family="tools", messages=messages, thinking=thinking, learn_from=0 if turns > 1 else learn_from)


def single_call(rng: random.Random, held_out: bool) -> Sample:
    """One request and its call, as held-out instances are; half of them thought through."""
    return tool_use(rng, True)
