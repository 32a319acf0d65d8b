"""`rewriter cache`: the latencies that earlier runs measured."""

from __future__ import annotations

import click


@click.group(short_help="Show or clear the latencies kept from earlier runs.")
def cache() -> None:
    """Shows or clears the latencies kept from earlier runs.

    "rewriter optimize" measures every form on this machine and keeps the times for 30 days, by shapes,
    provider, threads, processor and version of ONNX Runtime. The variable REWRITER_CACHE_DIR names another
    folder for them.
    """


@cache.command()
def path() -> int:
    """Prints the folder that they are kept in."""
    from rewriter.cache import folder

    click.echo(folder())
    return 0


@cache.command()
def clear() -> int:
    """Removes all of them."""
    from rewriter.cache import clear as remove
    from rewriter.cache import folder

    removed = remove()
    click.echo(f"Removed {removed} {'file' if removed == 1 else 'files'} from {folder()}")
    return 0
