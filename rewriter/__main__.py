"""`python -m rewriter` is the same as `rewriter`."""

from rewriter.cli import main

if __name__ == "__main__":
    main()
