"""The answers that one voice is giving, which grow together; new ones join between two tokens of the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from time import perf_counter

import torch
from torch import Tensor, nn

from loraft.errors import LoraftError
from loraft.events import Observer, ignored, tell
from loraft.figures import shared_beginning
from loraft.inference.completion import PartialCompletion
from loraft.inference.decoder_state import DecoderState
from loraft.inference.engine import open_answers, take_tokens
from loraft.inference.prompt_limits import beyond_training
from loraft.inference.sampling import normalizers
from loraft.inference.session import Speaker
from loraft.kernels.transfer import to_device
from loraft.models.modules import wrapped_model
from loraft.models.probe import spec_of
from loraft.serving.jobs import ChoiceToken, Failed, Grown, Job, Opened, ScoredToken
from loraft.tokenization.boundaries import Pieces

ALIKE = 2
"""Prompts are read together where the longest has at most so many times the tokens of the shortest."""
WORTH_HOLDING = 16
"""For fewer common tokens than this a prompt is read anew."""


@dataclass(eq=False)
class GrowingAnswer:
    """One answer of a job, and how many of its tokens were told."""

    job: Job
    choice: int
    answer: PartialCompletion
    likeliest: list[tuple[ScoredToken, ...]]
    told: int = 0

    def tell(self, pieces: Pieces) -> None:
        """Tell the tokens whose text is out; all of them once the answer has ended."""
        answer, ended = self.answer, self.answer.ending is not None
        ready = len(answer.token_ids) - (1 if answer.waits and not ended else 0)
        tokens = tuple(self._token(place, pieces) for place in range(self.told, ready))
        self.told = ready
        if tokens or ended:
            self.job.tell(Grown(self.choice, tokens, answer.finish_reason))

    def _token(self, place: int, pieces: Pieces) -> ChoiceToken:
        answer, likeliest = self.answer, self.likeliest[place] if self.likeliest else ()
        said = _scored(answer.token_ids[place], answer.logprobs[place], pieces)
        return ChoiceToken(said, answer.pieces[place], likeliest)


def _scored(token_id: int, logprob: float, pieces: Pieces) -> ScoredToken:
    return ScoredToken(pieces.of(token_id).text, pieces.utf8(token_id), logprob)


@dataclass(eq=False)
class Group:
    """Rows of one context, and the newest token of each, `[rows]`, which it has not read yet."""

    context: DecoderState
    rows: list[GrowingAnswer]
    newest: Tensor


class HeldPrefixes:
    """Rows that one voice has read, the newest first, while their keys and values take no more than `room` bytes.

    They are kept for later prompts that begin alike: conversations, or one system prompt.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._held: deque[tuple[list[int], DecoderState, int]] = deque()

    def beginning_of(self, ids: Sequence[int]) -> DecoderState | None:
        """A copy of the longest beginning of a prompt that was read before, all but its last token at most."""
        shared = [(shared_beginning(held, ids[:-1]), place) for place, (held, *_) in enumerate(self._held)]
        length, place = max(shared, default=(0, 0))
        if length < WORTH_HOLDING:
            return None
        found = self._held[place]
        del self._held[place]
        self._held.appendleft(found)
        return found[1].part(0, length)

    def hold(self, row: DecoderState) -> None:
        """Keep what was read of a row; what is a beginning of it goes, and the oldest go where there is no room."""
        ids = row.first_row
        others = (each for each in self._held if each[0] != ids[: len(each[0])])
        self._held = deque([(ids, row, row.cache_bytes), *others])
        taken = sum(size for *_, size in self._held)
        while taken > self._room:
            taken -= self._held.pop()[-1]


class VoiceBatch:
    """The answers of one voice; its adapter must act, and the model be in `ordinary_attention`, at each call.

    The `observer` is told once where answers may leave the positions that the model was trained with.
    """

    def __init__(self, model: nn.Module, voice: Speaker, room: int, observer: Observer = ignored) -> None:
        self._model, self.voice, self._observer = model, voice, observer
        self._pieces = Pieces(voice.tokenizer)
        self._groups: list[Group] = []
        self._held = HeldPrefixes(room)
        config = wrapped_model(model).config
        self._reads_together = config.is_encoder_decoder or spec_of(config).pads_left

    def __len__(self) -> int:
        return sum(len(group.rows) for group in self._groups)

    def admit(self, jobs: Sequence[Job]) -> None:
        """Read the prompts of new jobs, choose the first token of each answer, and let them go on with the others."""
        opened, prefixes = [], dict[Job, DecoderState]()
        for job in jobs:
            try:
                job.open()
                opened.append((job, self._rows(job)))
            except LoraftError as error:
                job.tell(Failed(error))
                continue
            if (prefix := self._held.beginning_of(job.prompt_ids)) is not None:
                prefixes[job] = prefix
        alone = [[each] for each in opened if each[0] in prefixes]
        together = self._alike([each for each in opened if each[0] not in prefixes])
        for some in (*alone, *together):
            self._read([job for job, _ in some], [row for _, rows in some for row in rows], prefixes.get(some[0][0]))

    def _rows(self, job: Job) -> list[GrowingAnswer]:
        settings = job.voice.settings(job.asked.options)
        settings["rules"] = replace(settings["rules"], num_beams=1)
        prompts = [job.prompt_ids] * job.asked.answers
        answers = open_answers(self._model, job.voice.tokenizer, prompts, settings)
        for note in beyond_training(self._model, prompts, settings["max_new_tokens"]):
            tell(self._observer, f"{self.voice.name}: {note}; no more is told of such")
            self._observer = ignored
        return [GrowingAnswer(job, choice, answer, []) for choice, answer in enumerate(answers)]

    def _alike(
        self, opened: Sequence[tuple[Job, list[GrowingAnswer]]]
    ) -> Iterator[list[tuple[Job, list[GrowingAnswer]]]]:
        """Those whose prompts are read together: of like length, or of the same where padding would be read."""
        by_length = sorted(opened, key=lambda each: len(each[0].prompt_ids))
        if not self._reads_together:
            yield from (list(same) for _, same in groupby(by_length, key=lambda each: len(each[0].prompt_ids)))
            return
        while by_length:
            most = ALIKE * len(by_length[0][0].prompt_ids)
            some = [each for each in by_length if len(each[0].prompt_ids) <= most]
            yield some
            by_length = by_length[len(some) :]

    def _read(self, jobs: Sequence[Job], rows: list[GrowingAnswer], prefix: DecoderState | None) -> None:
        started, context = perf_counter(), prefix or DecoderState(self._model, rewinds=True)
        held = context.length
        try:
            ids, mask = context.begin([job.prompt_ids for job in jobs], start=rows[0].answer.rules.start)
            logits = context.read(ids, mask)
            if len(rows) > len(jobs):  # several answers to one prompt, which was read once
                of_job = [place for place, job in enumerate(jobs) for _ in range(job.asked.answers)]
                context.keep(of_job)
                logits = logits[to_device(of_job, logits.device)]
            for job in jobs:
                job.tell(Opened(len(job.prompt_ids), held))
            group = Group(context, rows, self._taken(context, logits, rows, started))
        except LoraftError as error:
            self._fail(rows, error)
            return
        self._groups.append(group)
        self._leave(group)
        if group in self._groups and context.joins:
            self._join()

    def step(self) -> None:
        """Each answer grows by one token; those that have ended, or that nobody waits for any more, leave."""
        for group in list(self._groups):
            self._leave(group)
            if group not in self._groups:
                continue
            started = perf_counter()
            try:
                logits = group.context.read(group.newest[:, None])
                group.newest = self._taken(group.context, logits, group.rows, started)
            except LoraftError as error:
                self._groups.remove(group)
                self._fail(group.rows, error)
                continue
            self._leave(group)

    def fail(self, error: LoraftError) -> None:
        """End all answers by an error."""
        groups, self._groups = self._groups, []
        for group in groups:
            self._fail(group.rows, error)

    def _taken(self, context: DecoderState, logits: Tensor, rows: Sequence[GrowingAnswer], started: float) -> Tensor:
        chosen, _ = take_tokens(context, logits, [row.answer for row in rows], started)
        for place, row in enumerate(rows):
            if row.job.asked.likeliest is not None:
                values, ids = (logits[place] - normalizers(logits[place])).topk(row.job.asked.likeliest)
                told = zip(ids.tolist(), values.tolist(), strict=True)
                row.likeliest.append(tuple(_scored(token_id, logprob, self._pieces) for token_id, logprob in told))
            row.tell(self._pieces)
        return chosen

    def _leave(self, group: Group) -> None:
        """Let the rows go that are done, and keep what was read of them for prompts that begin alike."""
        kept = [place for place, row in enumerate(group.rows) if row.answer.ending is None and not row.job.cancelled]
        if len(kept) == len(group.rows):
            return
        if group.context.joins:
            for place in set(range(len(group.rows))) - set(kept):
                self._held.hold(group.context.part(place))
        if not kept:
            self._groups.remove(group)
            return
        group.context.keep(kept)
        if group.context.joins:
            group.context.trim()
        group.rows = [group.rows[place] for place in kept]
        group.newest = group.newest[to_device(kept, group.newest.device)]

    def _join(self) -> None:
        first, *others = self._groups
        if others:
            first.context.join([group.context for group in others])
            first.rows += [row for group in others for row in group.rows]
            first.newest = torch.cat([group.newest for group in (first, *others)])
            self._groups = [first]

    @staticmethod
    def _fail(rows: Sequence[GrowingAnswer], error: LoraftError) -> None:
        for job in dict.fromkeys(row.job for row in rows):
            job.tell(Failed(error))
