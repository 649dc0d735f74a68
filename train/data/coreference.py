"""Sentences in which *it* stands for one of two nouns, and only the last word says which.

"The animal didn't cross the street because it was too tired" speaks of the animal, "... too wide" of the street
(Winograd schemas, Levesque et al. 2012; these two from Uszkoreit 2017, "Transformer: A Novel Neural Network
Architecture for Language Understanding"). Each sentence comes with its reading: the same words, with the noun that is
meant in the place of *it*. To fill in the reading, a network has to resolve the pronoun where it stands.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from configs import schema
from train.data.sections import Corpus, DataError, Section, digest

# Who does not go there.
SUBJECTS = (
    "animal", "dog", "cat", "horse", "cow", "sheep", "goat", "donkey", "wolf", "bear",
    "fox", "rabbit", "turtle", "elephant", "monkey", "camel", "child", "boy", "girl", "student",
    "teacher", "doctor", "nurse", "farmer", "soldier", "sailor", "tourist", "hiker", "cyclist", "runner",
    "painter", "singer", "writer", "lawyer", "pilot", "guard", "hunter", "merchant", "postman", "king",
)  # fmt: skip
# And where.
OBJECTS = (
    "street", "road", "bridge", "river", "lake", "pond", "field", "meadow", "valley", "canyon",
    "forest", "desert", "swamp", "beach", "park", "garden", "square", "market", "station", "harbour",
    "tunnel", "cave", "trail", "path", "highway", "avenue", "canal", "creek", "glacier", "plain",
    "courtyard", "corridor", "staircase", "hallway", "plaza", "campus", "island", "bay", "pass", "gorge",
)  # fmt: skip
VERBS = ("cross", "enter", "reach", "explore", "visit", "like")
FRAMES = (
    "The {subject} didn't {verb} the {object} because it was too {adjective}.",
    "The {subject} could not {verb} the {object} because it was too {adjective}.",
    "The {subject} would not {verb} the {object} since it was far too {adjective}.",
    "Today the {subject} didn't {verb} the {object} because it was so {adjective}.",
    "In the evening the {subject} did not {verb} the {object} because it seemed too {adjective}.",
)
# What only the one can be, and what only the other.
OF_SUBJECTS = ("tired", "scared", "lazy", "hungry", "sleepy", "weak", "shy", "ill", "nervous", "thirsty")
OF_OBJECTS = ("wide", "busy", "long", "narrow", "steep", "crowded", "deep", "slippery", "distant", "flooded")


@dataclass(frozen=True)
class Sentence:
    """A sentence but for its last word."""

    frame: str
    verb: str
    subject: str
    object: str

    def text(self, adjective: str) -> str:
        """What is read."""
        return self.frame.format(**dataclasses.asdict(self), adjective=adjective)

    def referent(self, adjective: str) -> str:
        """The noun that *it* stands for if the sentence ends with that word."""
        return self.subject if adjective in OF_SUBJECTS else self.object

    def section(self, adjective: str) -> Section:
        """What is read, and what is meant by it."""
        read = self.text(adjective)
        return Section(read.replace(" it ", f" {self.referent(adjective)} "), last=True, source=read)


# The sentence of the story. Its pair of nouns is never trained.
STORY = Sentence(FRAMES[0], VERBS[0], SUBJECTS[0], OBJECTS[0])


def open_coreference(config: schema.Data) -> Corpus:
    """The generated corpus; always the same, and nothing is read.

    Each noun of the one side meets each of the other, and each pair ends with each of the adjectives, in a frame and
    with a verb that do not depend on which side the adjective is of. A share `config.held_out` of the pairs is never
    trained, the story's animal and street among them; each noun meets as many others in training as any other does.

    Raises:
      DataError: the share leaves no pair to train on, or none to be judged on.
    """
    train, held_out = (
        [sentence.section(adjective) for sentence, adjective in _sentences(steps)] for steps in _steps(config)
    )
    description = f"{len(train)} generated sentences whose last word tells what 'it' stands for"
    fingerprint = digest([section.source for sections in (train, held_out) for section in sections])
    return Corpus(train, held_out, fingerprint, description)


def held_out_sentences(config: schema.Data) -> list[tuple[Sentence, str]]:
    """What the corpus holds out, with the last words; two with the same beginning stand side by side."""
    return _sentences(_steps(config)[1])


def _steps(config: schema.Data) -> tuple[range, range]:
    """By how many places a subject's object stands behind it: in what is trained, and in what is held out."""
    held_out = round(config.held_out * len(OBJECTS))
    if not 1 <= held_out < len(OBJECTS):
        raise DataError(
            f"--data.held_out={config.held_out} is {held_out} of the {len(OBJECTS)} nouns that each noun meets; "
            f"at least one must be held out for evaluation, and one trained"
        )
    return range(held_out, len(OBJECTS)), range(held_out)


def _sentences(steps: range) -> list[tuple[Sentence, str]]:
    """All sentences whose object stands so many places behind their subject, with every last word."""
    sentences = []
    for step in steps:
        for first, subject in enumerate(SUBJECTS):
            second = (first + step) % len(OBJECTS)
            for third, words in enumerate(zip(OF_SUBJECTS, OF_OBJECTS, strict=True)):
                # Any mixture will do in which the frame and the verb tell nothing about the nouns and the last word.
                frame = FRAMES[(first + second + third) % len(FRAMES)]
                verb = VERBS[(first + step // 2 + second * first + third) % len(VERBS)]
                sentences += [(Sentence(frame, verb, subject, OBJECTS[second]), word) for word in words]
    return sentences
