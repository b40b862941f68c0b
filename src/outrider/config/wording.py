"""Sentences about a configuration, in which our own words and the values of the configuration are told apart: what is
secret is hidden in the values alone, so that a user called `user` does not take the word out of our sentence."""

from __future__ import annotations

from collections.abc import Callable


class Sentence(str):
    """A template of ours with values put in. It is an ordinary text, and can be made again with parts of the values
    hidden. In the template, braces that stand for themselves are doubled, as in `str.format`."""

    template: str
    values: dict[str, str]

    def __new__(cls, template: str, values: dict[str, str]) -> Sentence:
        sentence = super().__new__(cls, template.format_map(values))
        sentence.template, sentence.values = template, values
        return sentence

    def with_values(self, change: Callable[[str], str]) -> str:
        """The sentence with its values changed, and its own words as they are."""
        return self.template.format_map({name: change(value) for name, value in self.values.items()})


def say(template: str, **values: object) -> Sentence:
    """A sentence of ours about these values."""
    return Sentence(template, {name: str(value) for name, value in values.items()})


def own(text: str) -> Sentence:
    """A sentence of ours without any value in it; braces stand for themselves."""
    return Sentence(text.replace("{", "{{").replace("}", "}}"), {})


def shown(value: object) -> str:
    """A value as a sentence quotes it: as it is written in YAML, and short."""
    if isinstance(value, dict):
        return "a map"
    if isinstance(value, list):
        return "a list"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return "nothing" if value is None else text[:60]
