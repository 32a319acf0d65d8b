"""`inspect`: a trained model in; its layers with their costs, and which passes have a form for each, out."""

from collections.abc import Mapping, Sequence

import passes as catalogue
from rewriter import fitting, graph, prepare, runtime
from rewriter.conv import Ints
from rewriter.graph import Layer, Site
from rewriter.profile import inventory as layers_of
from rewriter.profile import profile as profiled
from rewriter.report import Inspection, LayerReport
from rewriter.rewrite import Refusal
from rewriter.runtime import Target


def inspect(
    model: graph.Source,
    *,
    profile: bool = False,
    provider: str = "cpu",
    provider_options: Mapping[str, str] | None = None,
    threads: int | None = None,
    batch: int = 1,
    shapes: Mapping[str, Ints] | None = None,
) -> Inspection:
    """Lists every Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN of a model.

    Args:
        model: A path, the bytes of a file, or an `onnx.ModelProto`.
        profile: Whether to run the model and measure where its time goes.
        provider: The execution provider to measure on, and whose grid of ranks the passes are asked about.
        provider_options: The provider's own options, as it is deployed, such as `{"use_tf32": "0"}`.
        threads: Threads of one operator there; None is ONNX Runtime's own default.
        batch: The batch size.
        shapes: Sizes of inputs with dynamic dimensions, by input name.

    Raises:
        OptionError: An option's value makes no sense, or a dynamic size is not given.
        ModelError: The model cannot be read, or not be run where that is needed.
        ProviderError: The provider cannot be used here.
    """
    target = Target(provider, threads, options=tuple((provider_options or {}).items()))
    runtime.check_provider(provider)
    original = graph.load(model)
    feeds = prepare.plain_feeds(original, batch, shapes or {})
    inputs = {name: array.shape for name, array in feeds.items()}
    fixed, inventory = layers_of(original, feeds)
    unpinned = graph.unpin(original)
    sites, barred = graph.find_sites(unpinned)
    forms = _forms(sites, barred, target)
    dead = graph.dead_channels(unpinned, sites)
    times = profiled(fixed, inventory.layers, feeds, target) if profile else None
    layers = []
    for layer in inventory.layers:
        passes, refusals = forms.get(layer.name, ((), (_no_conv(layer),)))
        ms = None if times is None else times.layers.get(layer.output)
        share = ms / times.total_ms if times is not None and ms is not None and times.total_ms else None
        layers.append(LayerReport(layer, ms, share, passes, refusals, *dead.get(layer.name, (0, 0))))
    return Inspection(
        model=original.label.strip("'"),
        layers=tuple(layers),
        macs=sum(layer.macs for layer in inventory.layers),
        flops=sum(layer.flops for layer in inventory.layers),
        params=inventory.params,
        uncounted=inventory.uncounted,
        passes=tuple(each.name for each in catalogue.PASSES),
        inputs=inputs,
        total_ms=None if times is None else times.total_ms,
        others_ms={} if times is None else times.others,
        environment=runtime.versions(),
        settings={
            "profile": profile,
            "provider": provider,
            "provider-option": dict(target.options),
            "threads": threads,
            "batch": batch,
            "shape": {name: list(shape) for name, shape in (shapes or {}).items()},
        },
    )


def _forms(
    sites: Sequence[Site], barred: Sequence[Refusal], target: Target
) -> dict[str, tuple[tuple[str, ...], tuple[Refusal, ...]]]:
    """The passes that have a form for each convolution, and why the others have not, by its name."""
    grid = prepare.grid_of(target)
    found: dict[str, tuple[tuple[str, ...], tuple[Refusal, ...]]] = {
        refusal.node: ((), (refusal,)) for refusal in barred
    }
    for site in sites:
        willing, refusals = fitting.willing(site, catalogue.PASSES, grid)
        found[site.name] = tuple(each.name for each, _ in willing), tuple(refusals)
    return found


def _no_conv(layer: Layer) -> Refusal:
    return Refusal(layer.name, None, f"a {layer.op_type}; only Conv and ConvTranspose are rewritten")
