"""Workers of dask.distributed that compute cells, on this machine or on many (docs/many_machines.md).

Each worker has one cell at a time: a cell goes to a worker by name and only when the worker is free, so that what is
claimed is being computed. The bytes of a cell's file come back, and only the study itself writes. A worker that ends,
however it does, is noticed by its scheduler, and its cell computed on another. What a worker needs comes with the cell,
settings and paths of a few hundred bytes: weights and data it reads itself, from the files that these name.

dask.distributed is an extra, imported only when a scheduler is asked for.
"""
