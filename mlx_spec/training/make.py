"""A draft from a target and prompts: answers, features, training, measuring, and the folder.

What is done lies beside the folder, in ``OUT.training``, and is gone on with: answers as JSON
lines, features as shards, training as a checkpoint. The folder itself appears at the end, whole::

    prompts ─ answers ─ vocabulary ─ features ─┬─ training ─ OUT
                                               └─ held out ─ what it reached
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from mlx_spec.config import ChatConfig
from mlx_spec.errors import InvalidRequest, OutputError
from mlx_spec.training.acceptance import Acceptance, measure
from mlx_spec.training.answers import Answer, Writing, write_answers
from mlx_spec.training.card import Card, Corpus
from mlx_spec.training.drafts import Trainee, make_draft
from mlx_spec.training.features import Example, compute_features, read_features
from mlx_spec.training.files import save_arrays, save_text
from mlx_spec.training.loop import Course, Standing, Trainer
from mlx_spec.training.questions import Question
from mlx_spec.training.recipe import Recipe
from mlx_spec.training.vocabulary import Vocabulary, frequent


@dataclass(frozen=True)
class Target:
    """The model that a draft is for.

    Attributes:
        name: as it was loaded.
        model, tokenizer: what ``load`` returned.
        chat: how a text is put to it.
    """

    name: str
    model: Any
    tokenizer: Any
    chat: ChatConfig


class Watch(Protocol):
    """Hears how far a run is."""

    def begin(self, what: str, total: int | None) -> None:
        """Work of a kind begins; ``total`` is of tokens, or of steps."""

    def more(self, amount: int) -> None:
        """So much of it is done."""

    def trained(self, progress: Standing, done: float) -> None:
        """A step, and the part of the course that is over."""

    def measured(self, reached: dict[str, Acceptance]) -> None:
        """Held-out acceptance by category, now."""


class Making:
    """One run.

    Args:
        target: the model.
        questions: to be answered.
        recipe: what is made.
        out: the folder; nothing may lie there.
        watch: hears how far it is.

    Raises:
        OutputError: there is something, or what lies beside it belongs to another run.
        InvalidRequest: there is nothing to train on, or nothing held out.
    """

    def __init__(
        self, target: Target, questions: Seq[Question], recipe: Recipe, out: Path, watch: Watch
    ) -> None:
        self._target, self._recipe, self._watch = target, recipe, watch
        self._out, self._work = out, out.with_name(f"{out.name}.training")
        self._questions = list(questions)
        held = {q.id for q in questions if q.held_out(recipe.held_out)}
        if not held and len(questions) > 1:  # few prompts, and no hash says so
            held = {questions[-1].id}
        self._held = held
        if not 0 < len(held) < len(questions):
            raise InvalidRequest(
                f"[train-draft] {len(questions)} prompts, {len(held)} of them held out: some must "
                "be trained on and some held out"
            )
        self._claim()

    @property
    def work(self) -> Path:
        """Where what is done lies."""
        return self._work

    def run(self) -> dict[str, Acceptance]:
        """All of it, as far as it is not done; what the draft reached, by category."""
        with (self._work / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(f"[train-draft] another process works in {self._work}") from error
            return self._made()

    def _made(self) -> dict[str, Acceptance]:
        answers = self._answer()
        vocabulary = self._vocabulary(answers)
        train, held = self._features(answers, vocabulary)
        draft = make_draft(self._target.model, self._recipe, vocabulary)
        progress = self._train(draft, train, held)
        reached = measure(draft.learner, draft.learner.module, held)
        self._watch.measured(reached)
        corpus = Corpus(
            questions=len(self._questions) - len(self._held),
            held_out=len(self._held),
            tokens=sum(map(len, train)),
            measured=sum(len(one) - one.answer for one in held),
            covered=_covered(held, vocabulary),
        )
        parameters = draft.parameters
        card = Card(self._target.name, self._recipe, parameters, corpus, progress, reached)
        self._write(draft, str(card))
        return reached

    def _claim(self) -> None:
        """The folder beside OUT, for a run with these options alone."""
        check_free(self._out)
        note = self._work / "run.json"
        mine = {"target": self._target.name, **json.loads(json.dumps(self._recipe.identity))}
        try:
            self._work.mkdir(parents=True, exist_ok=True)
            known = json.loads(note.read_text(encoding="utf-8")) if note.exists() else mine
        except (OSError, ValueError) as error:
            raise OutputError(f"[train-draft] {self._work} cannot be used ({error})") from error
        differing = [
            f"{name} was {known.get(name)}, now {mine.get(name)}"
            for name in sorted(known.keys() | mine.keys())
            if known.get(name) != mine.get(name)
        ]
        if differing:
            raise OutputError(
                f"[train-draft] {self._work} belongs to another run ({'; '.join(differing)}); "
                "delete it, or name another OUT"
            )
        save_text(note, json.dumps(mine, indent=2) + "\n")

    def _answer(self) -> list[Answer]:
        recipe = self._recipe
        writing = Writing(
            recipe.max_tokens,
            recipe.temperatures,
            recipe.batch_size,
            recipe.seed,
            self._target.chat,
        )
        most = len(self._questions) * len(recipe.temperatures) * recipe.max_tokens
        self._watch.begin("writing answers, tokens", most)
        place = self._work / "answers.jsonl"
        model, tokenizer = self._target.model, self._target.tokenizer
        return write_answers(model, tokenizer, self._questions, writing, place, self._watch.more)

    def _vocabulary(self, answers: Seq[Answer]) -> Vocabulary:
        """The most frequent tokens, of what is trained on alone; kept, since features name them."""
        place = self._work / "vocabulary.json"
        size = int(self._target.model(mx.zeros((1, 1), mx.int32)).shape[-1])
        if place.exists():
            return Vocabulary(json.loads(place.read_text(encoding="utf-8")), size)
        texts = [[*one.prompt, *one.tokens] for one in answers if one.question not in self._held]
        found = frequent(texts, min(self._recipe.vocabulary, size), size)
        save_text(place, json.dumps(found.tokens.tolist()))
        return found

    def _features(
        self, answers: Seq[Answer], vocabulary: Vocabulary
    ) -> tuple[list[Example], list[Example]]:
        """What is trained on, and what is held out."""
        folder = self._work / "features"
        total = sum(len(one.prompt) + len(one.tokens) for one in answers)
        self._watch.begin("reading hidden states, tokens", total)
        compute_features(self._target.model, answers, vocabulary, folder, self._watch.more)
        held = {one.id for one in answers if one.question in self._held}
        wanted = {one.id for one in answers}
        examples = [one for one in read_features(folder) if one.id in wanted]
        return (
            [one for one in examples if one.id not in held],
            [one for one in examples if one.id in held],
        )

    def _train(self, draft: Trainee, train: list[Example], held: list[Example]) -> Standing:
        recipe = self._recipe
        course = Course(
            recipe.steps, recipe.seconds, recipe.tokens_per_step, recipe.learning_rate, recipe.seed
        )
        trainer = Trainer(draft.learner, course, self._work / "checkpoint.safetensors")
        self._watch.begin("training, steps", recipe.steps)
        looked = [int(trainer.done * _LOOKS)]
        some = held[:: max(1, len(held) // _SOME)]

        def heard(progress: Standing) -> None:
            self._watch.trained(progress, trainer.done)
            if int(trainer.done * _LOOKS) > looked[0] and trainer.done < 1:
                looked[0] = int(trainer.done * _LOOKS)
                self._watch.measured(measure(draft.learner, draft.learner.module, some))

        trainer.run(train, heard)
        return trainer.progress

    def _write(self, draft: Trainee, card: str) -> None:
        """OUT, in one rename."""
        fresh = self._work / "draft"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        save_text(fresh / "config.json", json.dumps(draft.config, indent=2) + "\n")
        save_arrays(fresh / "model.safetensors", draft.weights, {"format": "mlx"})
        save_text(fresh / "README.md", card)
        if draft.tokenizer and self._target.tokenizer is not None:
            self._target.tokenizer.save_pretrained(str(fresh))
        try:
            fresh.rename(self._out)
        except OSError as error:
            raise OutputError(f"[train-draft] {self._out}: {error.strerror}") from error


def check_free(out: Path) -> None:
    """Refuse an OUT that is there.

    Raises:
        OutputError: it is.
    """
    if out.exists():
        raise OutputError(f"[train-draft] {out} exists; name another folder")


# Looks at held-out acceptance in a whole course, and answers that are looked at.
_LOOKS, _SOME = 10, 16


def _covered(held: Seq[Example], vocabulary: Vocabulary) -> float:
    """Share of the answers' tokens that the draft can guess."""
    tokens = np.concatenate([one.tokens[one.answer :] for one in held])
    return float((vocabulary.rows[tokens] >= 0).mean())
