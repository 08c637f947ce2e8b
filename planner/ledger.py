"""What each rank of a plan must hold in memory, by the section on memory of ``docs/cost-model.md``.

Part of `check`: independent of everything that makes plans.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from planner.aggregation import answer_names
from planner.joins import exchanges, weight_bytes
from planner.layout import Layout, StageView
from planner.planfile import INPUT, OUTPUT, RankMemory, Transfer
from planner.prices import Prices
from planner.request import Destination, PlanRequest
from profiler.allocator import MAPPED_BYTES
from profiler.profile import PRELUDE

ROOT_RANK = 0


class Ledgers:
    """The ledger of any rank; what stages and devices have in common is computed once."""

    def __init__(
        self, layout: Layout, transfers: Iterable[Transfer], request: PlanRequest, prices: Prices
    ) -> None:
        self._layout, self._request, self._prices = layout, request, prices
        self._received: dict[str, list[Transfer]] = {place: [] for place in layout.stages}
        self._sent: dict[str, list[Transfer]] = {place: [] for place in layout.stages}
        for transfer in transfers:
            if transfer.target != OUTPUT:
                self._received[transfer.target].append(transfer)
            if transfer.source != INPUT:
                self._sent[transfer.source].append(transfer)
        self._activations: dict[tuple[object, ...], int] = {}

    def of_stage_rank(self, stage: StageView, position: int) -> RankMemory:
        """The ledger of the rank at ``position`` of ``stage``."""
        graph = self._prices.graph
        weights = {name for i in stage.layers for name in graph.layers[i].weights}
        held = weight_bytes(stage, position, self._prices)
        state = sum(graph.weight[name].num_bytes for name in weights if graph.weight[name].state)
        return self._ledger(
            rank=stage.ranks[position],
            weights_bytes=held - state,
            state_bytes=state,
            activations_bytes=self._peak_activations(stage, position),
            buffers_bytes=self._buffers(stage, position) + self._joining(stage, position),
        )

    def _buffers(self, stage: StageView, position: int) -> int:
        # Pieces that come from, or go to, another device; a tensor once, however many it goes to.
        on_root = stage.devices[position] == self._layout.root
        cut = {
            name: self._prices.graph.tensor[name].in_parts
            for name in {x.tensor for x in self._sent[stage.place]}
        }
        incoming = {
            x.tensor for x in self._received[stage.place] if not (on_root and x.source == INPUT)
        }
        outgoing = {
            x.tensor
            for x in self._sent[stage.place]
            if not (on_root and x.target == OUTPUT)
            and ((cut[x.tensor] and not stage.slices) or position == 0)
        }
        items = stage.shares[position]
        ahead = 1 if stage.whole_batch else self._layout.depth
        return ahead * sum(self._prices.size(name, items) for name in (*incoming, *outgoing))

    def _joining(self, stage: StageView, position: int) -> int:
        # One join at a time; the heap stays as large as the largest of them made it.
        small = large = 0
        for part in stage.slices:
            for join in exchanges(stage, part, self._prices):
                got = join.pieces[position]
                small = max(small, sum(n for n in got if n < MAPPED_BYTES))
                large = max(large, sum(n for n in got if n >= MAPPED_BYTES))
        return large + self._heap(stage.devices[position], stage.items, small)

    def _heap(self, device: str, items: int, alive: int) -> int:
        """Bytes of a heap on which layers need ``alive``."""
        return alive + alive * self._prices.heap(device, items) // 1000

    def of_root(self) -> RankMemory:
        """The ledger of rank 0 when no stage is there: it feeds and gathers."""
        return self._ledger(
            rank=ROOT_RANK, weights_bytes=0, state_bytes=0, activations_bytes=0, buffers_bytes=0
        )

    def _ledger(
        self,
        *,
        rank: int,
        weights_bytes: int,
        state_bytes: int,
        activations_bytes: int,
        buffers_bytes: int,
    ) -> RankMemory:
        device = self._layout.device_of[rank]
        graph = self._prices.graph
        held = self._answers_at(rank)
        if rank == ROOT_RANK:
            held |= set(graph.inputs)
        items = self._layout.batch_size
        buffers_bytes += sum(self._sums(held, items))
        reserve = self._request.reserve_bytes
        free = self._prices.cluster.device[device].usable_bytes
        return RankMemory(
            weights_bytes=weights_bytes,
            state_bytes=state_bytes,
            activations_bytes=activations_bytes,
            buffers_bytes=buffers_bytes,
            reserve_bytes=self._prices.timings(device).baseline_bytes
            if reserve is None
            else reserve,
            capacity_bytes=min(free, self._request.max_bytes.get(device, free)),
        )

    def _answers_at(self, rank: int) -> set[str]:
        """Outputs of which a rank may hold a whole batch."""
        graph = self._prices.graph
        match self._request.destination:
            case Destination.ALL if rank != ROOT_RANK:
                return set(answer_names(graph, self._request))
            case Destination.SCATTERED:
                return set(graph.outputs)
        return set(graph.outputs) if rank == ROOT_RANK else set()

    def _peak_activations(self, stage: StageView, position: int) -> int:
        device, items = stage.devices[position], stage.shares[position]
        received = frozenset(x.tensor for x in self._received[stage.place])
        sent = frozenset(x.tensor for x in self._sent[stage.place])
        key = (self._prices.timings(device).measured_on, items, stage.layers, received, sent)
        if key not in self._activations:
            self._activations[key] = self._most_alive(stage.layers, device, items, received, sent)
        return self._activations[key]

    def _most_alive(
        self,
        layers: Sequence[int],
        device: str,
        items: int,
        received: frozenset[str],
        sent: frozenset[str],
    ) -> int:
        graph, prices = self._prices.graph, self._prices
        last_read = {name: i for i in layers for name in graph.layers[i].reads}
        dying: dict[int, list[str]] = {}
        for name, i in last_read.items():
            dying.setdefault(i, []).append(name)
        alive = {name for name in received if name in last_read or name in sent}
        small, large = self._sums(alive, items)
        most_small = most_large = 0
        for i in layers:
            layer = graph.layers[i]
            own_large = prices.mapped(device, layer.twin, items)
            own_small = prices.peak(device, layer.twin, items) - own_large
            most_small = max(most_small, small + own_small)
            most_large = max(most_large, large + own_large)
            ending = [x for x in dying.get(i, ()) if x in alive and x not in sent]
            starting = [
                x
                for x in layer.writes
                if x not in alive and (last_read.get(x, -1) > i or x in sent)
            ]
            alive.difference_update(ending)
            alive.update(starting)
            more, fewer = self._sums(starting, items), self._sums(ending, items)
            small, large = small + more[0] - fewer[0], large + more[1] - fewer[1]
        prelude = prices.peak(device, PRELUDE, items) if prices.uses_prelude(layers) else 0
        return self._heap(device, items, most_small) + most_large + prelude

    def _sums(self, names: Iterable[str], items: int) -> tuple[int, int]:
        """Bytes of the tensors that lie on the heap, and of those too large for it."""
        sizes = [self._prices.size(name, items) for name in names]
        large = sum(size for size in sizes if size >= MAPPED_BYTES)
        return sum(sizes) - large, large
