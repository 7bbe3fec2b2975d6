"""Tool calls: pick the tool that fits, fill in its arguments, and say what it returned.

A dialogue offers one to four tools. Some are of everyday kinds (weather, time, messages), the others are made up from
nouns ("get_price(item: string)"), so that names and arguments must be read from the list rather than known.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tools.bundled_model import lexicon
from tools.bundled_model.conversation import Calls, Mentions, Message, ToolCall
from tools.bundled_model.scene import Scene


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a tool: what the user says, the arguments, what the tool returns and how that is told."""

    question: str
    arguments: Mapping[str, Any]
    result: Mapping[str, Any]
    answer: str
    value: str


@dataclass(frozen=True, slots=True)
class Tool:
    """`parameters` maps an argument's name to its JSON type."""

    name: str
    description: str
    parameters: Mapping[str, str]
    use: Callable[[Scene], Use]

    def as_openai(self) -> dict[str, Any]:
        properties = {name: {"type": kind} for name, kind in self.parameters.items()}
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": schema},
        }


def offer(scene: Scene) -> list[Tool]:
    """One to four tools with different names."""
    tools: dict[str, Tool] = {}
    wanted = scene.rng.randint(1, 4)
    while len(tools) < wanted:
        tool = scene.rng.choices(_KINDS, _WEIGHTS)[0](scene)
        tools[tool.name] = tool
    return list(tools.values())


def use(scene: Scene, tool: Tool) -> list[Message]:
    """A question for `tool`: the call, its result, and the answer made from the result."""
    act = tool.use(scene)
    call = ToolCall(tool.name, act.arguments)
    request, called = scene.exchange("call tool", act.question, "", Calls(call), f"I use {tool.name}.")
    return [
        request,
        Message("assistant", called.content, called.reasoning, (call,), called.skill, called.check),
        Message("tool", json.dumps(act.result)),
        Message("assistant", act.answer, skill="use tool result", check=Mentions(act.value)),
    ]


def _weather(scene: Scene) -> Tool:
    argument = scene.rng.choice(("city", "location", "place"))

    def act(scene: Scene) -> Use:
        city, degrees = scene.words.city(scene.rng), scene.rng.randint(1, 39)
        sky = scene.rng.choice(("sunny", "cloudy", "rainy", "windy", "snowy"))
        asks = ("What is the weather like in {city}?", "How is the weather in {city}?", "What's the weather in {city}?")
        return Use(
            scene.phrase(asks, city=city),
            {argument: city},
            {"temperature": degrees, "sky": sky},
            f"It is {degrees} degrees and {sky} in {city}.",
            str(degrees),
        )

    name = scene.rng.choice(("get_weather", "weather", "get_current_weather"))
    return Tool(name, "Get the weather in a city.", {argument: "string"}, act)


def _time(scene: Scene) -> Tool:
    argument = scene.rng.choice(("city", "location", "place"))

    def act(scene: Scene) -> Use:
        city, now = scene.words.city(scene.rng), f"{scene.rng.randint(0, 23):02}:{scene.rng.randint(0, 59):02}"
        asks = ("What time is it in {city}?", "Tell me the time in {city}.")
        return Use(scene.phrase(asks, city=city), {argument: city}, {"time": now}, f"It is {now} in {city}.", now)

    name = scene.rng.choice(("get_time", "current_time", "clock"))
    return Tool(name, "Get the time in a city.", {argument: "string"}, act)


def _message(scene: Scene) -> Tool:
    to, text = scene.rng.choice((("to", "text"), ("name", "message"), ("recipient", "body")))

    def act(scene: Scene) -> Use:
        name = scene.words.first_name(scene.rng)
        words = " ".join(scene.words.any_word(scene.rng) for _ in range(scene.rng.randint(1, 4)))
        asks = ("Send a message to {name}: {words}", "Tell {name}: {words}", "Write to {name}: {words}")
        return Use(
            scene.phrase(asks, name=name, words=words),
            {to: name, text: words},
            {"status": "sent"},
            f"The message to {name} is sent.",
            name,
        )

    return Tool(
        scene.rng.choice(("send_message", "send_mail", "notify")),
        "Send a message to a person.",
        {to: "string", text: "string"},
        act,
    )


def _timer(scene: Scene) -> Tool:
    argument = scene.rng.choice(("minutes", "duration"))

    def act(scene: Scene) -> Use:
        minutes = scene.rng.randint(2, 99)
        asks = ("Set a timer for {n} minutes.", "Start a timer of {n} minutes.", "Wake me in {n} minutes.")
        return Use(
            scene.phrase(asks, n=minutes),
            {argument: minutes},
            {"status": "started"},
            f"The timer is set for {minutes} minutes.",
            str(minutes),
        )

    return Tool(scene.rng.choice(("set_timer", "timer")), "Set a timer.", {argument: "integer"}, act)


def _calculator(scene: Scene) -> Tool:
    verb, sign = scene.rng.choice((("multiply", "*"), ("add", "+"), ("divide", "/")))
    first, second = scene.rng.choice((("a", "b"), ("x", "y")))

    def act(scene: Scene) -> Use:
        a, b, result = (int(scene.words.digits(scene.rng, 2, 5)) for _ in range(3))
        asks = (f"What is {{a}} {sign} {{b}}?", f"Calculate {{a}} {sign} {{b}}")
        return Use(
            scene.phrase(asks, a=a, b=b),
            {first: a, second: b},
            {"result": result},
            f"The result is {result}.",
            str(result),
        )

    return Tool(verb, f"{verb.capitalize()} two numbers.", {first: "integer", second: "integer"}, act)


def _lookup(scene: Scene) -> Tool:
    what = scene.rng.choice(("price", "size", "owner", "weight", "age", "code", "address", "status", "value", "color"))
    argument = scene.rng.choice(("name", "item", "key", "id", "query"))

    def act(scene: Scene) -> Use:
        of = scene.rng.choice((scene.words.made_up_word(scene.rng), scene.words.first_name(scene.rng)))
        value = scene.words.digits(scene.rng, 2, 4)
        asks = ("What is the {what} of {of}?", "Find the {what} of {of}.", "Look up the {what} of {of}.")
        return Use(
            scene.phrase(asks, what=what, of=of),
            {argument: of},
            {what: int(value)},
            f"The {what} of {of} is {value}.",
            value,
        )

    verb = scene.rng.choice(("get", "find", "lookup"))
    return Tool(f"{verb}_{what}", f"{verb.capitalize()} the {what} of something.", {argument: "string"}, act)


def _switch(scene: Scene) -> Tool:
    thing = scene.rng.choice(lexicon.OBJECTS)
    verb = scene.rng.choice(("open", "close", "start", "stop", "paint"))
    argument = scene.rng.choice(("number", "room"))

    def act(scene: Scene) -> Use:
        number = scene.rng.randint(1, 99)
        asks = ("Please {verb} {thing} {n}.", "I want you to {verb} {thing} {n}.", "Now {verb} {thing} number {n}.")
        return Use(
            scene.phrase(asks, verb=verb, thing=thing, n=number),
            {argument: number},
            {"status": "done"},
            f"The {thing} {number} is done.",
            str(number),
        )

    return Tool(f"{verb}_{thing}", f"{verb.capitalize()} a {thing}.", {argument: "integer"}, act)


_KINDS: list[Callable[[Scene], Tool]] = [_weather, _time, _message, _timer, _calculator, _lookup, _switch]
_WEIGHTS = [3, 2, 2, 1, 1, 4, 2]
