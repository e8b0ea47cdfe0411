"""What people read of a reason: a sentence of the feature's description, its value, and where it moves the score."""

import re

# A full stop ends a sentence where a capital follows, but not that of an abbreviation.
END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\b[A-Z])(?<!\b(?:vs|no))(?<!\b(?:incl|excl))[.!?](?=\s+[^a-z\s]|\s*$)|;\s")


def subject(name: str, description: str) -> str:
    """What a feature is, in a few words: the first sentence of its description, else its name with spaces."""
    told = " ".join(description.split()) or name.replace("_", " ").strip()
    first = END.split(told, maxsplit=1)[0].strip()
    return first[:1].upper() + first[1:]


def sentence(subject: str, value: str | None, contribution: float, of_class: str | None = None) -> str:
    """ "Days since the last order: 34, which raises the score." Of a category, for or against a class."""
    if of_class is None:
        moves = "raises the score" if contribution > 0 else "lowers the score"
    else:
        moves = f"speaks {'for' if contribution > 0 else 'against'} {of_class}"
    return f"{subject}: {'not known' if value is None else value}, which {moves}."
