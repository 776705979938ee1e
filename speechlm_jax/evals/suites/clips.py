"""Evaluation clips about a closed world -> the questions, stories and words to score."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.codes import read_codes
from speechlm_jax.evals.abx import SpokenWord
from speechlm_jax.evals.spoken_qa import Question
from speechlm_jax.evals.storycloze import Part, Story
from speechlm_jax.evals.wer import Reading
from speechlm_jax.world.world import World

WORLD, EVALUATION = "world.json", "codes/evaluation"  # of a run on a closed world


@dataclasses.dataclass(frozen=True)
class EvaluationClips:
    """Codes of every evaluation clip, by kind."""

    folder: Path
    world: World

    @classmethod
    def find(cls, run: Path) -> "EvaluationClips | None":
        """Returns the evaluation clips of a run on a closed world; None if it has no such world."""
        if not (run / WORLD).is_file():
            return None
        return cls(run / EVALUATION, configs.from_json(World, artifacts.read_json(run / WORLD)))

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """All rows of the codes folder."""
        return list(read_codes(self.folder))

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Returns the rows of one kind of clip."""
        return [row for row in self.rows if row["kind"] == kind]

    def questions(self, kind: str = "question") -> list[Question]:
        """Returns every spoken question, with the spoken answers of the same voice that exist."""
        answers = {(row["speaker"], row["text"]): row["codes"] for row in self.of_kind("answer")}
        tables = self.world.tables
        facts = {fact.id: fact for fact in self.world.facts}
        lead = tables.answer_lead
        made = []
        for row in self.of_kind(kind):
            fact = facts[row["fact"]]
            values = tables.attributes[fact.attribute]
            spoken = [answers.get((row["speaker"], f"{lead} {value}")) for value in values]
            made.append(
                Question(
                    fact=row["fact"],
                    wording=fact.kind,
                    voice=row["speaker"],
                    text=row["text"],
                    lead=lead,
                    answer=fact.value,
                    values=values,
                    codes=row["codes"],
                    spoken_answers=tuple(c for c in spoken if c is not None),
                )
            )
        return made

    def stories(self) -> list[Story]:
        """Returns every spoken story with its two endings."""
        parts: dict[str, dict[str, dict[str, Any]]] = {}
        for row in self.of_kind("story"):
            parts.setdefault(row["story"], {})[row["part"]] = row
        return [
            Story(
                story=name,
                voice=its["beginning"]["speaker"],
                wording="story",
                beginning=_part(its["beginning"]),
                right=_part(its["right"]),
                wrong=_part(its["wrong"]),
            )
            for name, its in parts.items()
        ]

    def unseen_words(self) -> list[SpokenWord]:
        """Returns the words that the tokenizer never heard, in several voices."""
        return [
            SpokenWord(row["text"], row["speaker"], np.array(row["codes"], np.int32))
            for row in self.of_kind("unseen_word")
        ]


def _part(row: dict[str, Any]) -> Part:
    return Part(row["text"], row["codes"])


def by_class(questions: Sequence[Question], kind: str) -> list[Question]:
    """Returns the questions about facts of one class."""
    return [question for question in questions if question.wording == kind]


def readings(rows: Sequence[dict[str, Any]], heard: Sequence[str]) -> list[Reading]:
    """Pairs clips (rows of a codes folder) with the words heard in each."""
    return [
        Reading(row["text"], text, voice=row["speaker"], fact=row.get("fact", ""))
        for row, text in zip(rows, heard, strict=True)
    ]
