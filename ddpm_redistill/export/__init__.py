"""A network as a file that other runtimes read; nothing of this package is needed to run it there."""
