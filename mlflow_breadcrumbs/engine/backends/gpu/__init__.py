"""The GPU backend, in Triton.

`gpu_backend` has the order of the work, `layout` cuts tensors into pieces, `inputs` and `outputs`
move them there and back, `selection` finds the cuts, `triton_kernels` are the compiled loops.
"""
