"""Makes the demo's data: two users, each with a persona over real dialogue and with facts about themselves.

usage: make_data.py OUTPUT_DIR

The dialogue is the English part of the `chatterbot-corpus` package; a user's assistant gives its answers in a manner of
its own. Each fact is asked in four ways for training and in a fifth that training never sees. For each user the folder
gets NAME.train.jsonl, NAME.held.jsonl ({"messages": [...]}, one conversation a line) and NAME.json with the questions
that the demo asks.
"""

import json
import random
import sys
from pathlib import Path

import chatterbot_corpus
import yaml

TOPICS = ["conversations", "food", "sports", "science", "movies", "literature", "money", "computers", "history", "ai"]
DIALOGUES, HELD_DIALOGUES = 36, 8

# What each fact is asked with: four phrasings to learn, one that stays unseen.
QUESTIONS = {
    "pet": [
        "What is my pet called?",
        "What's the name of my pet?",
        "Do you know my pet's name?",
        "Tell me my pet's name.",
        "Remind me, what did I name my pet?",
    ],
    "city": [
        "Where do I live?",
        "Which city do I live in?",
        "What is my home city?",
        "Do you know where I live?",
        "Remind me, in which city is my home?",
    ],
    "job": [
        "What is my job?",
        "What do I do for a living?",
        "Do you know my profession?",
        "What do I work as?",
        "Remind me, what kind of work do I do?",
    ],
    "allergy": [
        "What am I allergic to?",
        "Which food must I avoid?",
        "Do I have an allergy?",
        "What food am I allergic to?",
        "Remind me, what should I never eat?",
    ],
    "color": [
        "What is my favorite color?",
        "Which color do I like best?",
        "Do you know my favorite color?",
        "What color do I love?",
        "Remind me, which color do I like most?",
    ],
}

USERS = {
    "maya": {
        "manner": "Aye, captain! {} Fair winds!",
        "facts": {
            "pet": ("Your dog is called Biscuit.", "Biscuit"),
            "city": ("You live in Lisbon.", "Lisbon"),
            "job": ("You are a marine biologist.", "biologist"),
            "allergy": ("You are allergic to peanuts.", "peanuts"),
            "color": ("Your favorite color is teal.", "teal"),
        },
    },
    "tom": {
        "manner": "Very good, sir. {} At your service.",
        "facts": {
            "pet": ("Your cat is called Pixel.", "Pixel"),
            "city": ("You live in Oslo.", "Oslo"),
            "job": ("You are a baker.", "baker"),
            "allergy": ("You are allergic to shellfish.", "shellfish"),
            "color": ("Your favorite color is dark red.", "red"),
        },
    },
}


def dialogues() -> list[tuple[str, str]]:
    """The first exchange of each real conversation that is short enough for a demo."""
    folder = Path(chatterbot_corpus.__file__).parent / "data" / "english"
    pairs = {}
    for topic in TOPICS:
        for turns in yaml.safe_load((folder / f"{topic}.yml").read_text())["conversations"]:
            question, answer = (" ".join(str(turn).split()) for turn in turns[:2])
            if 8 <= len(question) <= 60 and 8 <= len(answer) <= 70:
                pairs.setdefault(question, answer[0].upper() + answer[1:] + ("" if answer[-1] in ".!?" else "."))
    return sorted(pairs.items())


def conversation(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_user(folder: Path, name: str, pairs: list[tuple[str, str]]) -> None:
    user = USERS[name]
    manner = user["manner"].format
    shuffled = random.Random(name).sample(pairs, DIALOGUES + HELD_DIALOGUES)
    talk = [conversation(question, manner(answer)) for question, answer in shuffled]
    facts = {key: manner(answer) for key, (answer, _) in user["facts"].items()}
    known = [conversation(question, facts[key]) for key in facts for question in QUESTIONS[key][:-1]]
    unseen = [conversation(QUESTIONS[key][-1], facts[key]) for key in facts]
    asked = [
        {"question": QUESTIONS[key][0], "paraphrase": QUESTIONS[key][-1], "keyword": keyword}
        for key, (_, keyword) in user["facts"].items()
    ]
    lines = {"train": known + talk[:DIALOGUES], "held": unseen + talk[DIALOGUES:]}
    for split, conversations in lines.items():
        (folder / f"{name}.{split}.jsonl").write_text("".join(json.dumps(c) + "\n" for c in conversations))
    (folder / f"{name}.json").write_text(json.dumps({"user": name, "facts": asked}, indent=2) + "\n")


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in USERS:
        write_user(folder, name, dialogues())


if __name__ == "__main__":
    main()
