"""Tasks that are answered by finding something in the prompt: JSON by schema, recall, repetition, filling a gap."""

from __future__ import annotations

import random
from typing import Any

from baleen.text.encoding_v32 import Message, to_json
from examples.demo_model import words
from examples.demo_model.sample import Sample, answer, user

QUOTED = 0.8
"""Share of samples whose requests put the strings to be copied in quotes."""

_BEGIN, _HOLE, _END = "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"


def made_up_name(rng: random.Random) -> str:
    """A name that no list holds, of two or three syllables."""
    return "".join(rng.choice(words.SYLLABLES) for _ in range(rng.randint(2, 3))).capitalize()


def person(rng: random.Random) -> str:
    """A first name, made up one time in three."""
    return made_up_name(rng) if rng.random() < 0.33 else rng.choice(words.NAMES)


def filler(rng: random.Random) -> str:
    """A sentence that says nothing worth remembering."""
    return (
        f"The {rng.choice(words.ADJECTIVES)} {rng.choice(words.ANIMALS)} {rng.choice(words.VERBS)} "
        f"near the {rng.choice(words.PLACES)}."
    )


def quoted(text: str, quotes: bool) -> str:
    """A value as a request writes it: in quotes its pieces are those that the answer copies."""
    return f'"{text}"' if quotes else text


def _person_fields(rng: random.Random) -> list[tuple[str, str, Any, str]]:
    """Field, JSON type, value and the sentence that tells it."""
    name, age, city, job = person(rng), rng.randint(10, 99), rng.choice(words.CITIES), rng.choice(words.JOBS)
    member = rng.random() < 0.5
    likes = rng.sample(words.FOODS, rng.randint(1, 3))
    return [
        ("name", "string", name, f"The name is {name}."),
        ("age", "integer", age, f"The age is {age}."),
        ("city", "string", city, f"The city is {city}."),
        ("job", "string", job, f"The job is {job}."),
        ("member", "boolean", member, "Is a member." if member else "Is not a member."),
        ("likes", "array", likes, f"Likes {', '.join(likes)}."),
    ]


def _product_fields(rng: random.Random) -> list[tuple[str, str, Any, str]]:
    item, colour, price, count = (
        rng.choice(words.ITEMS),
        rng.choice(words.COLOURS),
        rng.randint(1, 99),
        rng.randint(1, 99),
    )
    sold = rng.random() < 0.5
    sizes = rng.sample(["small", "medium", "large"], rng.randint(1, 3))
    return [
        ("item", "string", item, f"The item is a {item}."),
        ("colour", "string", colour, f"The colour is {colour}."),
        ("price", "integer", price, f"The price is {price}."),
        ("stock", "integer", count, f"There are {count} in stock."),
        ("sold_out", "boolean", sold, "It is sold out." if sold else "It is not sold out."),
        ("sizes", "array", sizes, f"The sizes are {', '.join(sizes)}."),
    ]


def json_by_schema(rng: random.Random, held_out: bool) -> Sample:
    """Facts and a schema, and the object as answer. Held out, they are told with quotes in the schema's order."""
    plain = not held_out and rng.random() > QUOTED
    fields = rng.choice((_person_fields, _product_fields))(rng)
    chosen = rng.sample(fields, rng.randint(2, 5))
    told = rng.sample(chosen, len(chosen)) if plain else list(chosen)
    if plain and rng.random() < 0.3:
        told.insert(rng.randint(0, len(told)), ("", "", None, filler(rng)))
    properties = {
        name: {"type": kind} | ({"items": {"type": "string"}} if kind == "array" else {}) for name, kind, _, _ in chosen
    }
    schema = {"type": "object", "properties": properties, "required": [name for name, _, _, _ in chosen]}
    text = " ".join(sentence if plain or not name else _fact(name, value) for name, _, value, sentence in told)
    asked = rng.choice(("{}", "Extract the data: {}", "Reply in JSON. {}")).format(text)
    system = rng.choice(("", "You are a helpful assistant.", "Answer in JSON."))
    final = to_json({name: value for name, _, value, _ in chosen})
    thinking = rng.random() < 0.3
    fields_named = ", ".join(name for name, _, _, _ in chosen)
    messages = [
        Message(role="system", content=system, response_format=schema),
        user(asked),
        answer(final, f"The schema asks for {fields_named}." if thinking else ""),
    ]
    return Sample(family="json", messages=messages, thinking=thinking)


def _fact(name: str, value: Any) -> str:
    """A fact that tells name and value as JSON writes them."""
    return f'The "{name}" is {to_json(value)}.'


def lookup(rng: random.Random, held_out: bool) -> Sample:
    """Several facts, and the object of some of them in another order: much finding in few tokens."""
    names = rng.sample((*words.OBJECTS, *words.ITEMS), rng.randint(3, 12))
    values = {name: rng.randint(0, 99) if rng.random() < 0.25 else rng.choice(words.CODE_WORDS) for name in names}
    facts = " ".join(_fact(name, values[name]) for name in names)
    asked = rng.sample(names, rng.randint(2, len(names)))
    listed = ", ".join(f'"{name}"' for name in asked)
    return Sample(
        family="lookup",
        messages=[user(f"{facts} Reply in JSON: {listed}"), answer(to_json({name: values[name] for name in asked}))],
    )


def _code(rng: random.Random) -> str:
    return " ".join(rng.sample(words.CODE_WORDS, rng.randint(1, 2)))


def recall_at(rng: random.Random, *, sentences: int, facts: int, questions: int, thinking: bool) -> Sample:
    """Facts spread over filler sentences, then questions about some of them."""
    objects = rng.sample(words.OBJECTS, facts)
    codes = {thing: _code(rng) for thing in objects}
    lines = [filler(rng) for _ in range(sentences - facts)] + [f"The code of the {o} is {codes[o]}." for o in objects]
    rng.shuffle(lines)
    messages = []
    for number, thing in enumerate(rng.sample(objects, questions)):
        question = f"What is the code of the {thing}?"
        final = f"The code of the {thing} is {codes[thing]}."
        messages += [user(question if number else " ".join(lines) + "\n\n" + question)]
        messages += [answer(final, f"The user asks for the code of the {thing}." if thinking else "")]
    last = len(messages) - 1 if thinking else 0
    return Sample(family="recall", messages=messages, thinking=thinking, learn_from=last)


def recall(rng: random.Random, held_out: bool) -> Sample:
    """Recall over 3 to 110 sentences, short ones more often; a held-out one reaches back some 1,000 tokens."""
    if held_out:
        return recall_far(rng)
    sentences = int(3 * (110 / 3) ** (rng.random() ** 1.3))
    facts = min(sentences, rng.randint(2, 14))
    thinking = rng.random() < 0.2
    questions = 1 if thinking else rng.randint(1, min(facts, 10))
    return recall_at(rng, sentences=sentences, facts=facts, questions=questions, thinking=thinking)


def recall_far(rng: random.Random) -> Sample:
    """One question about a fact in the first sentence of about 1,000 tokens, with other facts in between."""
    objects = rng.sample(words.OBJECTS, 9)
    codes = {thing: _code(rng) for thing in objects}
    lines = [filler(rng) for _ in range(112)] + [f"The code of the {o} is {codes[o]}." for o in objects[1:]]
    rng.shuffle(lines)
    thing = objects[0]
    text = " ".join([f"The code of the {thing} is {codes[thing]}.", *lines])
    messages = [
        user(f"{text}\n\nWhat is the code of the {thing}?"),
        answer(f"The code of the {thing} is {codes[thing]}."),
    ]
    return Sample(family="recall", messages=messages)


def repeat(rng: random.Random, held_out: bool) -> Sample:
    """Say the same words again: the plainest use of copying, over all lists and made-up names; as text or as JSON."""
    pool = (words.OBJECTS, words.ANIMALS, words.CITIES, words.NAMES, words.CODE_WORDS, words.ADJECTIVES, words.FOODS)
    count = rng.randint(3, 30)
    chosen = [
        made_up_name(rng)
        if rng.random() < 0.2
        else str(rng.randint(0, 999))
        if rng.random() < 0.2
        else rng.choice(rng.choice(pool))
        for _ in range(count)
    ]
    style = rng.random()
    if style < 0.4:
        text = " ".join(chosen)
    elif style < 0.7:
        text = to_json(chosen)
    else:
        text = to_json(dict(zip(chosen[::2], chosen[1::2], strict=False)))
    return Sample(family="repeat", messages=[user(rng.choice(("Repeat: {}", "Say: {}")).format(text)), answer(text)])


_CODE = (
    "def {f}({a}, {b}):\n    return {a} + {b}\n",
    "def {f}({a}):\n    total = 0\n    for {b} in {a}:\n        total += {b}\n    return total\n",
    "class {F}:\n    def __init__(self, {a}):\n        self.{a} = {a}\n",
    "if {a} > {b}:\n    print({a})\nelse:\n    print({b})\n",
    "for {b} in range({n}):\n    {f}({b})\n",
    "{a} = [{b} * {n} for {b} in {f}]\n",
    "with open({a}) as {b}:\n    {f} = {b}.read()\n",
    "import {a}\n\n{b} = {a}.{f}({n})\nprint({b})\n",
)


def fill_in_the_middle(rng: random.Random, held_out: bool) -> Sample:
    """A small program, or a row of numbers, with a gap; the completion is what fills it."""
    if rng.random() < 0.3:
        first, step = rng.randint(1, 40), rng.randint(1, 5)
        text = ", ".join(str(first + step * i) for i in range(rng.randint(5, 10)))
    else:
        a, b, f = rng.sample([*words.OBJECTS, *words.ITEMS, "value", "item", "left", "right", "count", "name"], 3)
        text = rng.choice(_CODE).format(a=a, b=b, f=f, F=f.capitalize(), n=rng.randint(2, 99))
    spaces = [i for i, c in enumerate(text) if c in " \n(,):."]
    start, end = sorted(rng.sample(spaces, 2))
    prompt = f"{_BEGIN}{text[:start]}{_HOLE}{text[end:]}{_END}"
    return Sample(family="fim", text=(prompt, text[start:end]))
