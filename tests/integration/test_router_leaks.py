"""However requests end, in whatever order, nothing stays counted."""

import asyncio
import random
from collections import Counter
from contextlib import asynccontextmanager, suppress

import pytest

from fabric.core.errors import RequestError
from fabric.core.prompt import GenerationSpec, PromptText
from fabric.core.request import ModelLoad, Objectives, ServicePace
from fabric.core.sampling import SamplingOverrides
from fabric.core.weights import WeightState
from fabric.router.admission import Admission, AdmissionLimits
from fabric.router.catalog import Catalog, CatalogRules
from fabric.router.connection import LinkOptions
from fabric.router.dispatch import Dispatcher
from fabric.router.ledger import InflightLedger
from fabric.router.policy import PredictedFinish
from fabric.router.routing import Routing
from fabric.router.tenants import TenantBuckets, TenantLimits
from fabric.router.tokenizers import TokenizerCache
from tests.integration.fake_engine import MODEL, served
from tests.integration.router_world import SECRET, FakeTokenizer, start_group

PACE = ServicePace(((1, 0.001), (100, 0.01)), ((1, 1, 0.001),), 0.1, 0.1)
NUM_REQUESTS = 60
NAMES = ("left", "right")


class Bug(Exception):
    """What nobody expects."""


class FlakyTokenizer(FakeTokenizer):
    """Breaks on one text."""

    @classmethod
    def load(cls, path):
        return cls()

    def encode(self, text, *, add_special_tokens=True):
        if text == "boom":
            raise Bug
        return super().encode(text, add_special_tokens=add_special_tokens)


class FlakyPolicy(PredictedFinish):
    """Breaks now and then."""

    def __init__(self, draw):
        self._draw = draw

    def choose(self, candidates):
        if self._draw.random() < 0.05:
            raise Bug
        return super().choose(candidates)


class Crowd:
    """Requests of many kinds at a dispatcher, whose counts are compared with them all the time."""

    def __init__(self, seed):
        self.draw = random.Random(seed)
        self.live = Counter()
        self.num_begun = 0
        self.groups = {}
        self.epoch = 1
        self.tokenizers = TokenizerCache(FlakyTokenizer.load)
        self.catalog = Catalog(
            LinkOptions(SECRET, "test", min_backoff_s=0.001), (MODEL,), CatalogRules(), lambda: None
        )
        ledger = InflightLedger(max_inflight=12)
        routing = Routing(FlakyPolicy(self.draw), ledger.work, {}, max_waiting_cold=3)
        limits = TenantLimits(tokens_per_s=1e4, burst_tokens=300, max_inflight=5)
        self.dispatcher = Dispatcher(
            self.catalog,
            Admission(self.tokenizers, AdmissionLimits()),
            routing,
            ledger,
            TenantBuckets({}, limits),
        )

    async def request(self, number):
        self.num_begun += 1
        try:
            with suppress(RequestError, Bug):
                await self._run(number)
        finally:
            self.check()

    async def _run(self, number):
        draw = self.draw
        late = Objectives(ttft_s=draw.choice([1e-6, 10.0, 10.0]), refuse_if_late=True)
        spec = GenerationSpec(
            MODEL,
            PromptText(draw.choice(["boom", *["hello"] * 5, "hello " * 30])),
            SamplingOverrides(max_tokens=draw.randint(1, 12), n=draw.randint(1, 2)),
            request_id=str(number),
            tenant=draw.choice(["a", "b"]),
            objectives=draw.choice([Objectives(), late]),
        )
        num_takes = draw.choice([0, 1, 2, 100, 100])
        timeout_s = draw.choice([None, None, None, 0.0, 1.0])
        async with self.dispatcher.open(spec, timeout_s) as answer:
            group = answer.group
            self.live[group] += 1
            try:
                self.check()
                await self._read(answer, num_takes)
            finally:
                self.live[group] -= 1

    async def _read(self, answer, num_takes):
        for _ in range(num_takes):
            letters = await answer.take()
            self.check()
            if isinstance(letters.end, RequestError):
                raise letters.end
            if letters.end is not None:
                return

    def check(self):
        """What the router counts is what is in flight."""
        work = self.dispatcher.ledger.work
        counted = {group: work.num_requests(group) for group in work.groups}
        assert counted == {group: count for group, count in self.live.items() if count}
        assert self.dispatcher.ledger.num_inflight >= sum(counted.values())

    async def watch(self):
        """Look at every turn of the loop, and hold up the groups now and then."""
        while True:
            self.check()
            for group in self.groups.values():
                if self.draw.random() < 0.8:
                    group.engine.going.clear()
                else:
                    group.engine.going.set()
            await asyncio.sleep(0)

    async def pause(self):
        for _ in range(self.draw.randint(0, 5)):
            await asyncio.sleep(0)

    async def come_and_go(self):
        """Requests come, some are cancelled at any moment, and groups are lost meanwhile."""
        tasks = []
        for number in range(NUM_REQUESTS):
            tasks.append(asyncio.create_task(self.request(number)))
            await self.pause()
            if self.draw.random() < 0.3:
                self.draw.choice(tasks).cancel()
            if number % 20 == 10:
                await self.shake()
                await self.wait_ready()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        wrong = [end for end in ends if end and not isinstance(end, asyncio.CancelledError)]
        assert wrong == []

    async def wait_ready(self):
        while True:
            with suppress(RequestError):
                if len(self.catalog.ready_groups(MODEL)) == len(NAMES):
                    return
            await asyncio.sleep(0)

    async def add(self, name):
        group = await start_group(name, self.epoch, models=(served(pace=PACE),))
        states = [WeightState.RESIDENT, WeightState.HOST]
        group.engine.weights = ModelLoad(MODEL, self.draw.choice(states))
        self.groups[name] = group
        self.tell()

    def tell(self):
        self.catalog.set_groups(tuple(group.address for group in self.groups.values()))

    async def shake(self):
        """A group dies, or leaves; it comes back in its next epoch."""
        self.epoch += 1
        name = self.draw.choice(NAMES)
        group = self.groups.pop(name)
        if self.draw.random() < 0.5:
            await group.stop()
            self.tell()
        else:
            self.tell()
            await asyncio.sleep(0)
            await group.stop()
        await self.add(name)
        self.check()

    async def stop(self):
        await self.catalog.stop()
        for group in self.groups.values():
            group.engine.going.set()
            await group.stop()
        self.tokenizers.stop()


@asynccontextmanager
async def crowd(seed):
    it = Crowd(seed)
    try:
        for name in NAMES:
            await it.add(name)
        await it.wait_ready()
        yield it
    finally:
        await it.stop()


@pytest.mark.parametrize("seed", range(6))
async def test_however_requests_end_the_counts_fit_those_in_flight_and_are_nothing_at_last(seed):
    async with crowd(seed) as it:
        watching = asyncio.create_task(it.watch())
        await it.come_and_go()
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        dispatcher = it.dispatcher
        assert (dispatcher.ledger.num_inflight, dispatcher.ledger.work.groups) == (0, ())
        assert dispatcher.ledger.work.num_waiting_cold(MODEL) == 0
        assert dispatcher.tenants.num_inflight == 0
        assert sum(dispatcher.outcomes.values()) == it.num_begun
        assert [it.catalog.link(name).num_streams for name in NAMES] == [0, 0]
        for group in it.groups.values():
            group.engine.going.set()
            while group.engine.num_live:
                await asyncio.sleep(0)
