"""Whether a kernel is right and worth it on the machine at hand, found out there.

A *site* is where a model calls an operation: shapes and types. Each site is tried at some *points*
(rows, new tokens, keys): the kernel against its reference, ragged, empty and long rows among them,
then its time against MLX's composition. ``judge`` decides in what order, within how many seconds,
and what follows; ``machine`` is the part that touches a device, and ``python -m
metal_kernels.trials`` runs both in a process of its own, so that a kernel that hangs or ends its
process takes nobody along.
"""
