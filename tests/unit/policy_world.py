"""The real scheduler under a policy, in virtual time that iterations take as a profile says."""

from collections.abc import Sequence
from itertools import pairwise

from fabric.core.profile import Profile
from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.kv.block_pool import BlockPool
from fabric.kv.manager import KVCacheManager
from fabric.scheduler.lane import ScheduledModel
from fabric.scheduler.output import SampledTokens, SchedulerOutput, StepResult
from fabric.scheduler.policies import PolicyConfig
from fabric.scheduler.request import SequenceState
from fabric.scheduler.scheduler import Scheduler
from fabric.scheduler.settings import SchedulerConfig

# A prompt token or an iteration of decodes takes a second.
SECONDS = Profile(((1, 1.0), (2, 2.0)), ((1, 1, 1.0), (2, 1, 1.0)))


def make_request(
    name: str, num_prompt: int, max_tokens: int, tenant: str = "", **options: object
) -> GenerationRequest:
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return GenerationRequest(
        name,
        "model",
        tuple(range(num_prompt)),
        sampling,
        tenant=tenant,
        **options,  # type: ignore[arg-type]
    )


class PolicyWorld:
    """Steps a scheduler with enough KV blocks, and keeps who ran when, and when each ended."""

    def __init__(
        self, config: PolicyConfig, profile: Profile = SECONDS, max_num_seqs: int = 1
    ) -> None:
        self.profile = profile
        limits = SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=64,
            max_num_waiting=9999,
            policy=config,
        )
        kv = KVCacheManager(BlockPool.fixed(4096), 16, False)
        model = ScheduledModel("model", kv, frozenset(), limits.max_model_len, profile)
        self.scheduler = Scheduler(limits, (model,))
        self.policy = self.scheduler._pool.policy
        self.now = 0.0
        self.ran: list[tuple[float, list[str]]] = []
        self.ends: dict[str, float] = {}

    def add(
        self, name: str, num_prompt: int, max_tokens: int, **options: object
    ) -> GenerationRequest:
        request = make_request(name, num_prompt, max_tokens, **options)  # type: ignore[arg-type]
        self.scheduler.add(request, self.now)
        return request

    def sequence(self, name: str, index: int = 0) -> SequenceState:
        return self.scheduler._pool.requests[name].sequences[index]

    def step(self) -> list[str]:
        """Run an iteration, and return the requests in it."""
        output = self.scheduler.schedule(self.now)
        live = self.scheduler._pool.sequences
        names = [live[item.key].request.source.request_id for item in output.scheduled]
        self.ran.append((self.now, names))
        self.now += self._seconds_of(output)
        sampled = tuple(
            SampledTokens(item.key, (5,) * item.num_samples)
            for item in output.scheduled
            if item.num_samples
        )
        self.scheduler.update_from_output(output, StepResult(output.step, sampled), self.now)
        for end in self.scheduler.take_ended():
            self.ends[end.request_id] = self.now
        ranks = [sequence.rank for sequence in live.values()]
        assert len(set(ranks)) == len(ranks)
        assert len({len(rank) for rank in ranks}) <= 1
        return names

    def run(self, max_steps: int = 5000) -> None:
        for _ in range(max_steps):
            if not self.scheduler.has_work:
                return
            self.step()
        raise AssertionError(f"still working after {max_steps} iterations")

    def waits_of(self, name: str) -> Sequence[float]:
        """The times between the iterations that a request was part of, from time 0 on."""
        starts = [0.0, *(now for now, names in self.ran if name in names)]
        return [after - before for before, after in pairwise(starts)]

    def _seconds_of(self, output: SchedulerOutput) -> float:
        prompts = [item.num_new_tokens for item in output.scheduled if item.num_new_tokens > 1]
        num_decodes = len(output.scheduled) - len(prompts)
        decode_s = self.profile.decode_s(num_decodes, 1) if num_decodes else 0.0
        return decode_s + sum(self.profile.prefill_s(count) for count in prompts)
