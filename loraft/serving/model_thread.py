"""The one thread that runs the model and its tokenizers: jobs go in from any thread, and events come out."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import ExitStack

from loraft.errors import LoraftError, RunError
from loraft.events import Observer
from loraft.inference.decoder_state import ordinary_attention
from loraft.inference.session import Session
from loraft.serving.jobs import Failed, Job
from loraft.serving.voice_batch import VoiceBatch

PREFIX_ROOM = 2**30
"""The bytes of keys and values that are kept of earlier prompts, for all voices together."""


class QueueFullError(Exception):
    """So many requests wait that no other is taken."""


class ModelThread:
    """Answers jobs, up to `rows` answers at a time; up to `queue` jobs wait for that, and more are refused."""

    def __init__(self, session: Session, *, rows: int, queue: int, observer: Observer) -> None:
        self._session, self._rows, self._queue = session, rows, queue
        room = PREFIX_ROOM // len(session.voices)
        voices = session.voices.items()
        self._batches = {name: VoiceBatch(session.model, voice, room, observer) for name, voice in voices}
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn.

        Raises:
            QueueFullError: Too many wait.
        """
        with self._changed:
            if len(self._waiting) >= self._queue:
                raise QueueFullError
            self._waiting.append(job)
            self._changed.notify()

    def stop(self) -> None:
        """End: what is being answered ends by an error."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def answering(self) -> int:
        """How many answers grow now."""
        return sum(map(len, self._batches.values()))

    @property
    def waiting(self) -> int:
        """How many jobs wait for their turn."""
        return len(self._waiting)

    def _run(self) -> None:
        with ordinary_attention(self._session.model), ExitStack() as acting:
            now: str | None = None
            while True:
                jobs = self._next_jobs()
                if self._stopped:
                    break
                for name, batch in self._batches.items():
                    mine = [job for job in jobs if job.voice.name == name]
                    if not mine and not len(batch):
                        continue
                    if name != now:
                        acting.close()
                        acting.enter_context(self._session.speaking(batch.voice))
                        now = name
                    self._answer(batch, mine)
        self._end(RunError("the server is ending"))

    def _next_jobs(self) -> list[Job]:
        """What may begin now; where nothing is being answered, the next job is waited for."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._waiting or self.answering)
            free, taken = self._rows - self.answering, list[Job]()
            while self._waiting and (free >= self._waiting[0].asked.answers or (not taken and not self.answering)):
                job = self._waiting.popleft()
                if not job.cancelled:
                    taken.append(job)
                    free -= job.asked.answers
            return taken

    @staticmethod
    def _answer(batch: VoiceBatch, jobs: list[Job]) -> None:
        """One token more of each answer; an error nobody foresaw ends these answers and not the server."""
        try:
            batch.step()
            batch.admit(jobs)
        except Exception as error:
            failed = RunError(f"the answer failed: {type(error).__name__}: {error}")
            batch.fail(failed)
            for job in jobs:
                job.tell(Failed(failed))

    def _end(self, error: LoraftError) -> None:
        for batch in self._batches.values():
            batch.fail(error)
        with self._changed:
            waiting, self._waiting = list(self._waiting), deque()
        for job in waiting:
            job.tell(Failed(error))
