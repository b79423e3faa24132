"""The merge itself: recipe, checkpoints in, one checkpoint out. Neither MLflow nor SQL.

1. `recipe` says what to compute; `masks` has its one rounding rule, `layer_groups` names layers.
2. `checkpoints` reads tensors lazily and hashes them, with `tensor_files`, which knows no torch:
   `headers` finds them, `stored_bytes` reads them from a disk, the room `remote` from an object
   store; `bundles` names several as one, `overlays` lay one over another, `adapters` makes them of
   LoRA adapters, `renamed` knows what else their tensors are called. `writing` writes the one
   output.
3. `backends` compute: the reference, the CPU's, the GPU's, with the same bits.
4. `alignment` shows sources under the base's names where their own are not quite those, as
   `deciding` finds with `naming` (prefixes, tied outputs), `library_configs` (which are a head's),
   `vocabularies` (which rows are of one token) and `mismatches` (why they don't fit). `patterns`
   says which of a recipe's match nothing, `unnamed_classes` which heads are merged in doubt.
5. `merging` streams base and sources through a backend into the output; `files` is the same from
   paths, for `merge-files`; `lowering` makes one LoRA adapter of what was merged; `tolerance` says
   when two results of one merge are the same; `running` names what is never summed, `rounding` how
   much of a change is none.
6. `shards` is a room of its own: a merge in pieces, by several workers, that survives being killed.
7. `drafts` are recipes with something left open, which `settling` finds from the weights;
   `mergekit_files` are recipes that somebody wrote for mergekit.
8. `parts` keep what each source contributes, `extracting` makes them, `joining` merges them: so a
   source is added to a merge, or taken out, without the others being read.
"""
