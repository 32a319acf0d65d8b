"""What the original gives at its sites, where rewrites are fitted to it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rewriter import calibration, patches
from rewriter.calibration import Walk
from rewriter.conv import Array
from rewriter.graph import Model, Site
from rewriter.patches import Positions
from rewriter.rewrite import Rewrite
from rewriter.runtime import Target
from rewriter.samples import Feeds

# Beyond so much nothing is kept, and every plan that is fitted runs the original anew.
_KEPT_BYTES = 1 << 28


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What a site of the original gives at some positions, one array a batch.

    Attributes:
        positions: Output positions, flat over n and the map.
        rows: Its output there, `[P, M]`.
        shortcut: What an Add behind it adds to that, `[P, M]`; None where there is none, or where it is not
            there before the site.
    """

    positions: Positions
    rows: list[Array]
    shortcut: list[Array] | None

    @property
    def held_bytes(self) -> int:
        """The memory that it takes."""
        arrays = [*self.positions, *self.rows, *(self.shortcut or ())]
        return sum(array.nbytes for array in arrays)


class References:
    """The references of a model's sites; those of a small one are kept, for they do not change.

    Args:
        model: The original.
        sites: All of its sites that may be fitted, in the order of the graph.
        batches: Samples to fit to.
        seed: Draws the positions.
        target: Where to run the model.
    """

    def __init__(
        self, model: Model, sites: Sequence[Site], batches: Sequence[Feeds], seed: int, target: Target
    ) -> None:
        self._model, self._sites, self._batches = model, sites, batches
        self._seed, self._target = seed, target
        self._kept: dict[str, Reference] = {}
        self._bytes = 0

    def of(self, sites: Sequence[Site]) -> Iterator[Reference]:
        """The references of some of the sites, in the order of the graph."""
        if all(site.name in self._kept for site in sites):
            yield from [self._kept[site.name] for site in sites]
            return
        left = {site.name for site in sites}
        # always by way of all sites: which shortcuts are there before a site must not depend on the plan
        walk = Walk(self._model, self._sites, self._batches, self._target)
        for site in self._sites:
            if not left:
                break
            inputs = walk.inputs()
            outputs = calibration.apply(Rewrite(((site.conv,),)), inputs, self._target)
            if (found := self._kept.get(site.name)) is None:
                found = self._found(site, inputs, outputs, walk)
                self._keep(site, found)
            walk.provide(outputs)
            if site.name in left:
                left.remove(site.name)
                yield found

    def _found(self, site: Site, inputs: Sequence[Array], outputs: Sequence[Array], walk: Walk) -> Reference:
        shortcut = None if site.shortcut is None else walk.tensor(site.shortcut)
        if shortcut is not None and shortcut[0].shape != outputs[0].shape:
            shortcut = None
        positions = patches.draw(site.conv, [batch.shape for batch in inputs], self._seed)

        def rows(batches: Sequence[Array]) -> list[Array]:
            return [patches.rows(each, at) for each, at in zip(batches, positions, strict=True)]

        return Reference(positions, rows(outputs), None if shortcut is None else rows(shortcut))

    def _keep(self, site: Site, found: Reference) -> None:
        self._bytes += found.held_bytes
        if self._bytes <= _KEPT_BYTES:
            self._kept[site.name] = found
        else:
            self._kept.clear()
