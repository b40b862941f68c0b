"""The guard: which caller may come in, and how it is proven."""
