"""A merge in shards of its output, each done alone: by any process, in any order, again if need be.

1. `plans` looks at headers and says what there is to do: which tensors make up each output file.
2. `working` computes one shard into a folder beside the output, with a note of what it found.
3. `finishing` holds the notes of all shards against each other, and moves the files into place.

`local` does all three in one call, by itself or with workers of an executor, and goes on where a
killed one stopped. Every tensor is independent of the others, so the weights are those of a merge
in one go; only masks over a whole model need a look at everything first, which is part of the plan.
`notes` is the form in which a worker's results travel; `places` keeps shards and notes, on a disk
or in an object store. `budgets` says beforehand what a merge will take.
"""
