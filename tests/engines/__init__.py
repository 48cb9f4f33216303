"""Executors of other libraries, with ours around them: real clusters, real workers."""
