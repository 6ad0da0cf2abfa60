"""Many dialogues at once: every token passes through the policy once, and nobody waits for the longest reply.

The rows of the batch do not keep step. A token is drawn for all that are speaking; once some have finished, the
environments answer those, their answers are read into the cache in one pass, and all go on. An episode that has ended
leaves its row to the next one. A prompt that stands in the cache already, as those of a group do, is copied there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from envs.core import StepResult
from envs.vector import TextVectorEnv
from rlobj.chat_format import ChatFormat, Message
from rlobj.critic import Judge
from rlobj.row_cache import RowCache
from rlobj.sampling import Sampling, Uniforms, draw, uniforms_of
from rlobj.trajectories import Limit, Trajectory

ANSWER_AT = 0.25
"""Share of the rows whose replies are over at which they are answered: to read few answers at a time costs as much as
to read many, and until then these rows stand idle."""


@dataclass(slots=True)
class _Row:
    """One episode in the batch."""

    episode: int
    messages: list[Message]
    trajectory: Trajectory
    uniforms: Uniforms
    incoming: list[int]
    """tokens that the policy has not read yet"""
    opens: bool = True
    """whether these are the beginning of what it sees"""
    turns: int = 0
    written: int = 0
    """tokens of the replies before this one"""
    chances: list[float] = field(default_factory=list)
    """a uniform number for each token that the present reply may have"""
    reply: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    over: bool = False
    """whether the reply is"""

    def begin_reply(self, sampling: Sampling) -> None:
        room = [sampling.max_reply_tokens, sampling.max_length - len(self.trajectory)]
        if sampling.max_episode_tokens is not None:
            room.append(sampling.max_episode_tokens - self.written)
        self.chances = self.uniforms.of_reply(min(room))
        self.reply, self.logps, self.values, self.over = [], [], [], False

    @property
    def chance(self) -> float:
        return 0.0 if self.over else self.chances[len(self.reply)]

    def limit(self, sampling: Sampling) -> Limit | None:
        """Which limit leaves no other reply after this one."""
        if self.turns >= sampling.max_turns:
            return "max_turns"
        if sampling.max_episode_tokens is not None and self.written >= sampling.max_episode_tokens:
            return "max_episode_tokens"
        return None


class DialoguePlay:
    """One batch of dialogues: the cache, and who speaks in its rows."""

    def __init__(
        self,
        policy: PreTrainedModel,
        chat: ChatFormat,
        environments: TextVectorEnv,
        sampling: Sampling,
        judge: Judge,
    ) -> None:
        self.policy, self.chat, self.environments, self.sampling = policy, chat, environments, sampling
        self.judge = judge
        self.processors = sampling.processors()
        self.rows: list[_Row] = []
        self.queue: deque[_Row] = deque()
        self.finished: dict[int, Trajectory] = {}

    def run(self, seeds: Sequence[int]) -> list[Trajectory]:
        """Play one episode for each seed; their trajectories, in the order of the seeds."""
        observations, _ = self.environments.reset(seed=list(seeds))
        for episode, uniforms in enumerate(uniforms_of(len(seeds))):
            opening = self._opening(observations[episode])
            row = _Row(episode, list(observations[episode]), opening, uniforms, opening.prompt_ids)
            self.queue.append(row)
        size = min(self.sampling.concurrent or len(seeds), len(seeds))
        self.rows = [self.queue.popleft() for _ in range(size)]
        self.cache = RowCache(self.policy, size, self.sampling.max_length)
        self.logits = torch.empty(0)  # (rows, V) behind what each has read
        self.values = [0.0] * size
        self._read()
        while self.rows:
            if sum(row.over for row in self.rows) >= ANSWER_AT * len(self.rows):
                self._answer_replies()
                self._replace_finished()
                self._read()
            else:
                self._write()
        return [self.finished[episode] for episode in range(len(seeds))]

    def _opening(self, messages: Sequence[Message]) -> Trajectory:
        ids = self.chat.prompt_ids(messages)
        room = max(self.sampling.max_length - self.sampling.max_reply_tokens, 1)
        return Trajectory(ids[-room:], prompt_was_cut=len(ids) > room)

    # The policy -------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        """Draw the next token of every reply that is not over."""
        scores = self.logits.float()
        if self.processors:
            scores = self.processors(self.cache.history(), scores)
        chances = torch.tensor([row.chance for row in self.rows], dtype=torch.float64, device=scores.device)
        ids, logps = draw(scores, chances)
        for row, token, logp, value in zip(self.rows, ids.tolist(), logps.tolist(), self.values, strict=True):
            if not row.over:
                row.reply.append(token)
                row.logps.append(logp)
                row.values.append(value)
                row.over = self._is_over(row)
        spoken = [[] if row.over else row.reply[-1:] for row in self.rows]
        # the last token of a reply goes in with what answers it
        if any(spoken):
            self.logits = self.cache.read(spoken)
            self.values = self.judge.values(len(self.rows))

    def _is_over(self, row: _Row) -> bool:
        return self._has_ended(row) or len(row.reply) == len(row.chances)

    def _has_ended(self, row: _Row) -> bool:
        """Whether the reply is whole."""
        if row.reply[-1] == self.chat.end_id:
            return True
        return bool(self.sampling.stop) and any(stop in self.chat.verbatim(row.reply) for stop in self.sampling.stop)

    def _read(self) -> None:
        """Pass what has arrived through the policy, and begin the replies to it."""
        standing = {tuple(r.trajectory.prompt_ids): slot for slot, r in enumerate(self.rows) if not r.opens}
        first, rest, sources = [], [], {}
        for slot, row in enumerate(self.rows):
            if not row.opens:
                rest += [slot] if row.incoming else []
                continue
            self.cache.clear(slot)
            source = standing.setdefault(tuple(row.incoming), slot)
            if source == slot:
                first.append(slot)
            else:
                sources[slot] = source
                rest.append(slot)
        self._read_rows(first)
        for slot, source in sources.items():
            *common, last = self.rows[slot].incoming
            self.cache.copy(source, slot, len(common))
            self.rows[slot].incoming = [last]
        self._read_rows(sorted(rest))

    def _read_rows(self, slots: list[int]) -> None:
        if not slots:
            return
        logits = self.cache.read([self.rows[slot].incoming for slot in slots], slots)
        if not self.logits.numel():
            self.logits = logits.new_zeros(len(self.rows), logits.size(1))
        self.logits[slots] = logits
        for slot, value in zip(slots, self.judge.values(len(slots)), strict=True):
            self.values[slot] = value
            row = self.rows[slot]
            row.incoming, row.opens = [], False
            row.begin_reply(self.sampling)

    # The environments -------------------------------------------------------------------------------------------

    def _answer_replies(self) -> None:
        """Let the environments answer the replies that are over."""
        over = {slot: row for slot, row in enumerate(self.rows) if row.over}
        said = {row.episode: self._say(row) for row in over.values()}
        results = self.environments.act(said)
        cut_short: dict[int, list[int]] = {}
        for slot, row in over.items():
            result, t = results[row.episode], row.trajectory
            t.rewards[-1] = result.reward
            if result.terminated:
                self._finish(row)
                continue
            row.messages += [{"role": "assistant", "content": said[row.episode]}, *result.new_messages]
            ids = self._answer(t, result)
            fits = len(t) + len(ids) + 1 < self.sampling.max_length
            t.limit = None if result.truncated else row.limit(self.sampling)
            if not fits and not result.truncated and t.limit is None:
                if self._overflow(row):
                    continue
                t.limit = "max_length"
            if result.truncated or t.limit:
                cut_short[slot] = [t.completion_ids[-1], *(ids if fits else [])]
                if t.limit:
                    self.environments.truncate(row.episode)
                self._finish(row)
                continue
            t.append_environment(ids)
            # a cut reply's closing token and the last sampled one have not been through the policy yet
            row.incoming = t.completion_ids[-len(ids) - 1 :]
        if cut_short and self.judge.critic is not None:
            self.cache.read(list(cut_short.values()), list(cut_short))
            for slot, value in zip(cut_short, self.judge.values(len(cut_short)), strict=True):
                self.rows[slot].trajectory.bootstrap = value

    def _say(self, row: _Row) -> str:
        row.trajectory.append_policy(row.reply, row.logps, row.values)
        row.trajectory.replies_cut += not self._has_ended(row)
        row.turns += 1
        row.written += len(row.reply)
        return self.chat.decode(row.reply)

    def _answer(self, trajectory: Trajectory, result: StepResult) -> list[int]:
        """What the environment appends; it also closes a reply that was cut before its end token."""
        cut = trajectory.completion_ids[-1] != self.chat.end_id
        return [*([self.chat.end_id] if cut else []), *self.chat.continuation_ids(result.new_messages)]

    def _finish(self, row: _Row) -> None:
        self.finished[row.episode] = row.trajectory

    def _replace_finished(self) -> None:
        """Give the rows of finished episodes to new ones; where there are none, the batch shrinks."""
        kept = []
        for slot, row in enumerate(self.rows):
            if row.episode in self.finished and self.queue:
                self.rows[slot] = self.queue.popleft()
            if self.rows[slot].episode not in self.finished:
                kept.append(slot)
        if kept and len(kept) < len(self.rows):
            self.cache.keep(kept)
            self.logits = self.logits[kept]
        self.values = [self.values[slot] for slot in kept]
        self.rows = [self.rows[slot] for slot in kept]

    def _overflow(self, row: _Row) -> bool:
        """Make room for an answer that does not fit; False where the episode is to be cut short instead.

        Raises:
            ValueError: where that is asked for.
        """
        what = self.sampling.overflow
        if what == "error":
            raise ValueError(
                f"the dialogue of episode {row.episode} of the batch does not fit into max_length, "
                f"{self.sampling.max_length} tokens, after {row.turns} replies: raise max_length, "
                "or let overflow be truncate or drop_oldest"
            )
        if what == "drop_oldest":
            self._drop_oldest(row)
        return what == "drop_oldest"

    def _drop_oldest(self, row: _Row) -> None:
        t = row.trajectory
        begin = self._opening(without_oldest(self.chat, row.messages, self.sampling.max_length // 2))
        begin.prompt_was_cut |= t.prompt_was_cut
        begin.oldest_dropped, begin.earned_before = t.oldest_dropped + 1, t.total_reward
        row.trajectory, row.incoming, row.opens = begin, begin.prompt_ids, True


def without_oldest(chat: ChatFormat, messages: Sequence[Message], most: int) -> list[Message]:
    """The messages less as many of the oldest turns as it takes to fit into `most` tokens, if the last turn does.

    System messages at the beginning stay. A turn begins with what is said to the assistant.
    """
    system = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    begins = [i for i in range(system + 1, len(messages)) if messages[i - 1]["role"] == "assistant"]
    kept = list(messages)
    for begin in begins:
        kept = [*messages[:system], *messages[begin:]]
        if len(chat.prompt_ids(kept)) <= most:
            break
    return kept
