"""Made-up outputs of a model, right ones and wrong ones, for tests of parsers."""

from __future__ import annotations

import json
from random import Random

from baleen.text.encoding_v32 import CALLS_BEGIN, CALLS_END, DSML, Message, ToolCall, encode_pieces

_USER = Message(role="user", content="?")
_WORDS = ("the ", "größe", "日本", "🐳", "\n", "\n\n", "<", "</", "<｜", '"', "\\", "{}", "a <b> c", " ", "\u2028", "0")
_TAGS = (
    "<think>",
    "</think>",
    f"\n\n{CALLS_BEGIN}\n",
    CALLS_BEGIN,
    f"\n{CALLS_END}",
    f'<{DSML}invoke name="f">\n',
    f"</{DSML}invoke>\n",
    f'<{DSML}parameter name="a" string="true">',
    f'<{DSML}parameter name="b" string="false">',
    f"</{DSML}parameter>\n",
    DSML,
)


def right_output(random: Random, *, thinking: bool) -> str:
    """An output as the encoder writes it, without the end-of-sequence string."""
    calls = [
        ToolCall(
            random.choice(("f", "get_weather")), json.dumps(_arguments(random), ensure_ascii=random.random() < 0.5)
        )
        for _ in range(random.choice((0, 0, 1, 1, 2, 3)))
    ]
    reasoning = "r" + text(random) if thinking else ""
    answer = Message(role="assistant", content=text(random), reasoning=reasoning, tool_calls=calls)
    return encode_pieces([_USER, answer], thinking=thinking)[1].removesuffix("<｜end▁of▁sentence｜>")


def wrong_output(random: Random, *, thinking: bool) -> str:
    """An output that may have lost its end or pieces of itself, or got pieces of tags where they do not belong."""
    output = right_output(random, thinking=thinking)
    for _ in range(random.randint(1, 3)):
        place = random.randint(0, len(output))
        end = min(len(output), place + random.choice((0, 1, 2, 8, 30)))
        tag = random.choice(_TAGS)
        cut = sorted((random.randint(0, len(tag)), random.randint(0, len(tag))))
        put = random.choice(("", tag, tag[cut[0] : cut[1]], random.choice(_WORDS)))
        output = output[:place] + put + output[end:]
    return output[: random.randint(0, len(output))] if random.random() < 0.2 else output


def text(random: Random) -> str:
    """A few words, which may look like the beginning of a tag."""
    return "".join(random.choice(_WORDS) for _ in range(random.randint(0, 6)))


def _call(random: Random) -> ToolCall:
    arguments = json.dumps(_arguments(random), ensure_ascii=random.random() < 0.5)
    return ToolCall(random.choice(("f", "get_weather")), arguments)


def _arguments(random: Random) -> dict[str, object]:
    values = (text(random), text(random), 1.5, -3, None, True, [text(random), {"k": 1}], {"ü": text(random)}, "")
    return {key: random.choice(values) for key in random.sample(("a", "b", "ö k", 'q"'), random.randint(0, 3))}
