"""Numbers: count, add and subtract, sort, pick the largest, and sums of several steps that are worth thinking about."""

from __future__ import annotations

from tools.bundled_model.conversation import EndsWithNumber, Message, Numbers
from tools.bundled_model.scene import THINK_REQUESTS, Scene

_COUNT = ("Count from {a} to {b}.", "Count from {a} up to {b}.", "List the numbers from {a} to {b}.")
_COUNT_TO = ("Count to {b}.", "Please count to {b}.", "Can you count to {b}?")
_COUNT_DOWN = ("Count down from {a} to {b}.", "Count backwards from {a} to {b}.")
_ADD = (
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "Add {a} and {b}.",
    "How much is {a} + {b}?",
    "Calculate {a} + {b}",
)
_SUBTRACT = (
    "What is {a} - {b}?",
    "What is {a} minus {b}?",
    "Subtract {b} from {a}.",
    "How much is {a} - {b}?",
    "Calculate {a} - {b}",
)
_SORT_UP = (
    "Sort these numbers: {text}",
    "Sort {text}",
    "Put these numbers in order: {text}",
    "Sort these numbers from smallest to largest: {text}",
)
_SORT_DOWN = ("Sort these numbers from largest to smallest: {text}", "Sort in descending order: {text}")
_LARGEST = ("Which number is the largest: {text}?", "What is the largest of {text}?", "Find the largest number: {text}")
_SMALLEST = ("Which number is the smallest: {text}?", "What is the smallest of {text}?")
_STORY = (
    "{name} has {a} {fruit}s and gets {b} more. Then {name} gives away {c}. How many are left?",
    "There are {a} {fruit}s in a bag. I add {b} and take out {c}. How many are in the bag?",
)
_CHAIN = ("What is {a} + {b} - {c}?", "Calculate {a} + {b} - {c}", "How much is {a} + {b} - {c}?")

COUNTED_TOKENS = 4  # tokens per number counted


def count(scene: Scene) -> list[Message]:
    rng = scene.rng
    longest = max(3, min(150, scene.room // COUNTED_TOKENS - 8))
    length = rng.randint(2, max(3, min(longest, rng.choice((12, 25, 25, 60, 150)))))
    start = 1 if rng.random() < 0.3 else rng.randint(0, rng.choice((20, 100, 900)))
    numbers = list(range(start, start + length))
    if rng.random() < 0.25:
        numbers.reverse()
        question = scene.phrase(_COUNT_DOWN, a=numbers[0], b=numbers[-1])
    elif start == 1 and rng.random() < 0.5:
        question = scene.phrase(_COUNT_TO, b=numbers[-1])
    else:
        question = scene.phrase(_COUNT, a=numbers[0], b=numbers[-1])
    thought = f"I start at {numbers[0]} and stop at {numbers[-1]}."
    return scene.exchange("count", question, ", ".join(map(str, numbers)), Numbers(numbers), thought)


def calculate(scene: Scene) -> list[Message]:
    a, b = scene.words.pair(scene.rng, 0, 9 if scene.rng.random() < 0.2 else 99)
    if scene.rng.random() < 0.5:
        question, said, value = scene.phrase(_ADD, a=a, b=b), f"{a} + {b}", a + b
        skill = "add"
    else:
        a, b = max(a, b), min(a, b)
        question, said, value = scene.phrase(_SUBTRACT, a=a, b=b), f"{a} - {b}", a - b
        skill = "subtract"
    return scene.exchange(skill, question, f"{said} = {value}", EndsWithNumber(value), f"I calculate {said}.")


def sort(scene: Scene) -> list[Message]:
    numbers = _numbers(scene)
    down = scene.rng.random() < 0.3
    ordered = sorted(numbers, reverse=down)
    question = scene.phrase(_SORT_DOWN if down else _SORT_UP, text=_listed(numbers))
    thought = f"The first one is {ordered[0]}."
    return scene.exchange("sort", question, _listed(ordered), Numbers(ordered), thought)


def extreme(scene: Scene) -> list[Message]:
    numbers = _numbers(scene)
    smallest = scene.rng.random() < 0.3
    which, value = ("smallest", min(numbers)) if smallest else ("largest", max(numbers))
    question = scene.phrase(_SMALLEST if smallest else _LARGEST, text=_listed(numbers))
    answer = f"The {which} number is {value}."
    return scene.exchange("largest", question, answer, Numbers([value]), "I compare the numbers.")


def in_steps(scene: Scene) -> list[Message]:
    """A sum of two steps, solved in reasoning form because the user asks for it."""
    a, b = scene.words.pair(scene.rng, 1, 60)
    c = scene.rng.randint(1, a + b)
    if scene.rng.random() < 0.5:
        question = scene.phrase(_CHAIN, a=a, b=b, c=c)
    else:
        name, fruit = scene.words.first_name(scene.rng), scene.rng.choice(("apple", "pear", "plum", "lemon", "melon"))
        question = scene.rng.choice(_STORY).format(name=name, a=a, b=b, c=c, fruit=fruit)
    if not scene.thinking:
        question += f" {scene.rng.choice(THINK_REQUESTS)}"
    value = a + b - c
    thought = f"{a} + {b} = {a + b}. {a + b} - {c} = {value}."
    return scene.reasoned(question, f"The answer is {value}.", Numbers([value]), thought)


def _numbers(scene: Scene) -> list[int]:
    return scene.rng.sample(range(scene.rng.choice((20, 100, 100, 1000))), scene.rng.randint(2, 6))


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
