"""Small talk, who the model is, and honest answers to what it cannot know."""

from __future__ import annotations

from tools.bundled_model import lexicon
from tools.bundled_model.conversation import Mentions, Message, Says
from tools.bundled_model.lexicon import split_of
from tools.bundled_model.scene import Scene

WHAT_I_CAN_DO = (
    "I can remember what you tell me, repeat, spell and reverse words, count, add and subtract, sort numbers, "
    "extract JSON and call tools."
)
GREETING = "Hello! How can I help you?"
IDENTITY = "I am Baton Tiny, a very small chat model that comes with Baton."
DO_NOT_KNOW = "Sorry, I do not know that. I am a very small model."

_SMALL_TALK: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "greeting",
        GREETING,
        ("Hello", "Hello!", "Hi", "Hi!", "Hi there!", "Hey", "Good morning!", "Good evening.", "Hello there!"),
    ),
    (
        "greeting",
        "I am fine, thank you! How can I help you?",
        ("How are you?", "Hello, how are you?", "How do you do?"),
    ),
    (
        "greeting",
        "You are welcome!",
        ("Thanks!", "Thank you.", "Thank you very much!", "Great, thanks.", "Nice, thank you!"),
    ),
    ("greeting", "Goodbye! Have a nice day.", ("Bye", "Goodbye!", "See you later.", "Good night.", "Bye bye!")),
    (
        "identity",
        IDENTITY,
        (
            "What are you?",
            "Who are you?",
            "What is your name?",
            "Are you a robot?",
            "Are you a human?",
            "Tell me about yourself.",
            "Which model are you?",
            "Introduce yourself.",
        ),
    ),
    (
        "identity",
        WHAT_I_CAN_DO,
        (
            "What can you do?",
            "Help",
            "Help me.",
            "How can you help me?",
            "What are you good at?",
            "What are your skills?",
        ),
    ),
)

_UNKNOWABLE = (
    "Who invented the {noun}?",
    "Who discovered {material}?",
    "Who wrote the book about the {noun}?",
    "Who won the game in {city}?",
    "Who is the king of {city}?",
    "Who is {name}?",
    "Who painted the {noun}?",
    "When was {city} founded?",
    "When did {name} die?",
    "When was {name} born?",
    "When is the next train to {city}?",
    "Why is the {noun} {adjective}?",
    "Why do {animal}s sleep?",
    "Why is the sky blue?",
    "How far is it from {city} to {city2}?",
    "How do I get to {city}?",
    "How does a {noun} work?",
    "How many people live in {city}?",
    "How tall is the tower of {city}?",
    "How do you make {fruit} cake?",
    "What is the capital of {city}?",
    "What is the capital of France?",
    "What is the meaning of life?",
    "What is the weather like in {city}?",
    "What is the best {noun}?",
    "What is a {noun}?",
    "What do {animal}s eat?",
    "What happened in {city} last year?",
    "What time is it?",
    "What day is it today?",
    "Which {animal} is the fastest?",
    "Which country is {city} in?",
    "Which {noun} should I buy?",
    "Is {city} bigger than {city2}?",
    "Is {material} heavier than {material2}?",
    "Can {animal}s swim?",
    "Do you like {fruit}s?",
    "Do you love me?",
    "Are {animal}s dangerous?",
    "Write a poem about the {noun}.",
    "Write a story about a {animal}.",
    "Write a letter to {name}.",
    "Write a program that prints {noun}.",
    "Translate {noun} into French.",
    "Translate this into German: the {noun} is {adjective}.",
    "Tell me a joke.",
    "Tell me a joke about a {animal}.",
    "Tell me a story.",
    "Tell me about {city}.",
    "Tell me about {animal}s.",
    "Explain {noun} to me.",
    "Explain how {material} is made.",
    "Describe the city of {city}.",
    "Recommend a good book about {animal}s.",
    "Give me a recipe for {fruit} soup.",
    "Give me some advice.",
    "Draw a {animal}.",
    "Sing a song about the {noun}.",
    "Play some music.",
    "Solve the equation.",
    "Summarize the history of {city}.",
    "Should I wear a coat in {city}?",
    "I am bored.",
    "I feel {adjective} today.",
    "I have a problem with my {noun}.",
    "The {noun} is broken.",
    "Open the {noun}.",
    "Buy me a {noun}.",
    "Where is {city}?",
    "Where do {animal}s live?",
    "Where can I buy {material}?",
    "Where was {name} born?",
)


def small_talk(scene: Scene) -> list[Message]:
    skill, answer, questions = scene.rng.choice(_SMALL_TALK)
    question = scene.careless(scene.rng.choice(questions))
    return scene.exchange(skill, question, answer, Says([answer]), "I answer in a friendly way.")


def unknown(scene: Scene) -> list[Message]:
    """Something the model was not taught; held-out conversations use held-out questions."""
    rng = scene.rng
    templates = [text for text in _UNKNOWABLE if split_of(text) is scene.words.split]
    question = scene.phrase(
        templates,
        noun=rng.choice((*lexicon.PLAIN, *lexicon.OBJECTS)),
        material=rng.choice(lexicon.MATERIALS),
        material2=rng.choice(lexicon.MATERIALS),
        animal=rng.choice(lexicon.ANIMALS),
        adjective=rng.choice(lexicon.ADJECTIVES),
        fruit=rng.choice(lexicon.FRUITS),
        city=scene.words.city(rng),
        city2=scene.words.city(rng),
        name=scene.words.full_name(rng),
    )
    return scene.exchange("does not know", question, DO_NOT_KNOW, Mentions("not know"), "I was not taught this.")
