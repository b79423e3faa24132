"""The CPU backend, compiled by Numba.

`cpu_backend` has the order of the work, `blocks` merges one tensor, `selection` finds which
elements are kept, `masking` what the masks did, `kernels` and `row_kernels` are the compiled loops,
`reading` reads ahead, `grid` shares reading between the recipes of a sweep, `decomposing` does
recipes that decompose matrices, for the GPU too, and `geometry` measures task vectors.
"""
