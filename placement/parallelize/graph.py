"""A model's operators on a mesh, as blocks of choices: embedding, attention, feed-forward, head.

Each operator has one variable for each phase. What is kept on devices, weights and KV, has one
that all phases share: iterations of prompts and of single tokens may run differently, on the same
weights. Norms, biases, routers and position embeddings are whole on each device.
"""

from dataclasses import dataclass

from placement.parallelize.costs import Costs, Matrix, Rates
from placement.parallelize.draft import RESIDUAL, Draft, PhaseDraft
from placement.parallelize.factors import Block
from placement.parallelize.layouts import Activation, Axes, Features, Spec, num_cuts
from placement.parallelize.stage import Phase
from placement.parallelize.strategies import (
    ATTENTION,
    BY_EXPERTS,
    BY_HEADS,
    BY_SEQUENCES,
    EXPERTS,
    MATMUL,
    WITHIN_EXPERTS,
    Storage,
    Strategies,
)
from placement.shape import ModelShape

TIED = "=embedding weights"


@dataclass(frozen=True, slots=True)
class Workload:
    """What is served: kinds of iterations, and tokens whose KV must fit beside the weights."""

    phases: tuple[Phase, ...]
    kv_tokens: int = 0


@dataclass(frozen=True, slots=True)
class OperatorGraph:
    """Draws a model's blocks for a mesh.

    Source: Alpa (Zheng et al., OSDI 2022), section 4; Megatron-LM (Shoeybi et al., 2019) and its
    sequence parallelism (Korthikanti et al., 2022) are points of this space.
    """

    shape: ModelShape
    axes: Axes
    workload: Workload
    rates: Rates

    def attention(self) -> Block:
        """Norm, queries with keys and values, attention, output, and the sum with what came in."""
        shape, draft = self.shape, self._draft()
        draft.keep_weights("qkv weights", Matrix(self._hidden, self._qkv, shape.weight_bits))
        draft.keep("KV", self._kv())
        draft.keep_weights("o weights", Matrix(self._heads, self._hidden, shape.weight_bits))
        for phase in draft.phases:
            self._attend(phase)
        fixed_bytes = shape.layer_vectors * shape.outer_bits // 8
        return draft.block("attention", RESIDUAL, "add 1", fixed_bytes)

    def feed_forward(self) -> Block:
        """Norm, up and gate, activation, down, and the sum with what came in; or experts."""
        if self.shape.num_experts > 1:
            return self._experts()
        shape, draft = self.shape, self._draft()
        inner = Features.of(shape.intermediate_size)
        wide = Features(((shape.intermediate_size, 2 if shape.is_gated else 1),))
        up = Matrix(self._hidden, wide, shape.weight_bits)
        down = Matrix(inner, self._hidden, shape.weight_bits)
        draft.keep_weights("up weights", up)
        draft.keep_weights("down weights", down)
        for phase in draft.phases:
            self._feed(phase, up, down)
        return draft.block("feed-forward", RESIDUAL, "add 2", 0)

    def embedding(self) -> Block:
        """The embedding of tokens that all devices know."""
        shape, draft = self.shape, self._draft()
        matrix = Matrix(Features.of(shape.vocab_size), self._hidden, shape.outer_bits)
        kept = TIED if shape.is_tied else "embedding weights"
        draft.keep_weights(kept, matrix)
        for phase in draft.phases:
            self._embed(phase, matrix, kept)
        numbers = shape.num_positions * shape.hidden_size
        numbers += shape.hidden_size if shape.has_embedding_norm else 0
        return draft.block("embedding", None, RESIDUAL, numbers * shape.outer_bits // 8)

    def head(self) -> Block:
        """The last norm and the head, of sampled tokens only, and the choice among logits."""
        shape, draft = self.shape, self._draft()
        vocabulary = Features.of(shape.vocab_size)
        matrix = Matrix(self._hidden, vocabulary, shape.outer_bits)
        turned = Matrix(vocabulary, self._hidden, shape.outer_bits)
        kept = TIED if shape.is_tied else "head weights"
        draft.keep_weights(kept, turned if shape.is_tied else matrix)
        for phase in draft.phases:
            self._sample(phase, matrix, kept)
        numbers = shape.outer_vectors - (shape.hidden_size if shape.has_embedding_norm else 0)
        return draft.block("head", RESIDUAL, None, numbers * shape.outer_bits // 8)

    def _attend(self, draft: PhaseDraft) -> None:
        shape, phase, costs = self.shape, draft.phase, self._costs
        rows = phase.num_tokens
        x, norm = draft.enter("norm 1", self._hidden)
        qkv = draft.matmul("qkv", Matrix(self._hidden, self._qkv, shape.weight_bits))
        kinds = Strategies.of(ATTENTION, self.axes)
        attention = draft.node(
            "attention", kinds, lambda each: costs.attention_s(each, shape, phase)
        )
        draft.use(attention, "KV", may_slice=False)
        output = draft.matmul("o", Matrix(self._heads, self._hidden, shape.weight_bits))
        draft.edge(norm, qkv, Activation(rows, self._hidden))
        draft.edge(qkv, attention, Activation(rows, self._qkv))
        draft.edge(attention, output, Activation(rows, self._heads))
        draft.add("add 1", (x, output), self._hidden)

    def _feed(self, draft: PhaseDraft, up: Matrix, down: Matrix) -> None:
        costs, rows = self._costs, draft.phase.num_tokens
        inner = Activation(rows, down.inputs)
        x, norm = draft.enter("norm 2", self._hidden)
        raised = draft.matmul("up", up)
        activation = draft.pointwise("activation", lambda each: costs.pointwise_s(each, inner, 3))
        lowered = draft.matmul("down", down)
        draft.edge(norm, raised, Activation(rows, self._hidden))
        draft.edge(raised, activation, Activation(rows, up.outputs))
        draft.edge(activation, lowered, inner)
        draft.add("add 2", (x, lowered), self._hidden)

    def _experts(self) -> Block:
        shape, draft = self.shape, self._draft()
        words = ("within experts", "by experts")
        draft.keep("expert weights", Storage.of(self.axes, words, self._expert_bytes))
        for phase in draft.phases:
            self._route(phase)
        fixed_bytes = shape.router * shape.outer_bits // 8
        return draft.block("feed-forward", RESIDUAL, "add 2", fixed_bytes)

    def _route(self, draft: PhaseDraft) -> None:
        shape, costs, rows = self.shape, self._costs, draft.phase.num_tokens
        each = Activation(rows, self._hidden)
        chosen = Activation(rows * shape.num_active_experts, self._hidden)
        x, norm = draft.enter("norm 2", self._hidden)
        router = draft.pointwise("router", lambda way: costs.router_s(way, each, shape.num_experts))
        kinds = Strategies.of(EXPERTS, self.axes)
        experts = draft.node("experts", kinds, lambda way: costs.experts_s(way, shape, rows))
        draft.use(experts, "expert weights")
        combine = draft.pointwise("combine", lambda way: costs.pointwise_s(way, chosen, 1))
        draft.edge(norm, router, each)
        draft.edge(router, experts, each)
        draft.edge(experts, combine, each)
        draft.add("add 2", (x, combine), self._hidden)

    def _embed(self, draft: PhaseDraft, matrix: Matrix, kept: str) -> None:
        costs, rows = self._costs, draft.phase.num_tokens
        kinds = Strategies.of(MATMUL, self.axes)
        lookup = draft.node("embedding", kinds, lambda each: costs.lookup_s(each, rows, matrix))
        draft.use(lookup, kept)
        x = draft.pointwise(RESIDUAL, None)
        draft.edge(lookup, x, Activation(rows, self._hidden))

    def _sample(self, draft: PhaseDraft, matrix: Matrix, kept: str) -> None:
        costs, rows = self._costs, draft.phase.num_sequences
        last, logits = Activation(rows, self._hidden), Activation(rows, matrix.outputs)
        kinds = Strategies.of(MATMUL, self.axes)
        x = draft.pointwise(RESIDUAL, None)
        norm = draft.pointwise("last norm", lambda each: costs.norm_s(each, last))
        head = draft.node("head", kinds, lambda each: costs.matmul_s(each, rows, matrix))
        draft.use(head, kept, is_turned=self.shape.is_tied)
        sample = draft.pointwise("sample", lambda each: costs.sample_s(each, logits))
        draft.edge(x, norm, last)
        draft.edge(norm, head, last)
        draft.edge(head, sample, logits)

    @property
    def _hidden(self) -> Features:
        return Features.of(self.shape.hidden_size)

    @property
    def _heads(self) -> Features:
        return Features(((self.shape.num_heads, self.shape.head_dim),))

    @property
    def _qkv(self) -> Features:
        shape = self.shape
        queries = (shape.num_heads, shape.head_dim)
        return Features((queries, (shape.num_kv_heads, 2 * shape.head_dim)))

    @property
    def _costs(self) -> Costs:
        return Costs(self.axes, self.rates)

    def _draft(self) -> Draft:
        return Draft(self.axes, self.workload.phases, self._costs)

    def _kv(self) -> Storage:
        def size(kept: Spec) -> int:
            heads = -(-self.shape.num_kv_heads // num_cuts(kept, self.axes, BY_HEADS))
            tokens = -(-self.workload.kv_tokens // num_cuts(kept, self.axes, BY_SEQUENCES))
            return tokens * 2 * heads * self.shape.head_dim * self.shape.kv_bits // 8

        return Storage.of(self.axes, ("by heads", "by sequences"), size)

    def _expert_bytes(self, kept: Spec) -> int:
        shape = self.shape
        width = -(-shape.intermediate_size // num_cuts(kept, self.axes, WITHIN_EXPERTS))
        experts = -(-shape.num_experts // num_cuts(kept, self.axes, BY_EXPERTS))
        numbers = (3 if shape.is_gated else 2) * shape.hidden_size * width
        return experts * numbers * shape.weight_bits // 8
