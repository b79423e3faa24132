"""Checkpoints that lie in an object store: read by ranges, nothing kept but what is being merged.

1. `stores` opens a folder at an address, through fsspec: lists, reads ranges, puts files.
2. `opening` fetches the headers of a checkpoint there, and holds them against the same limits.
3. `fetching` has the bytes of its tensors come here, segment by segment, and go again.
4. `ahead` fetches what a merge will read next, and lets go of what has been written.
"""
