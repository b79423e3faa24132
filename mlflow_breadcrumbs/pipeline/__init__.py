"""THE main flow: registered versions in, one merged, evaluated, registered version out.

`flow` is all of it on one page, `merge_request` what it is asked for; `planning` checks that before
anything is computed, plans it and knows its cost; `inputs` opens what goes in,
`configurations` tells whether the sources compute as the base does, `heading` finds the heads that
they keep for themselves, `computing` hands both to the engine, `registration` makes the version,
with its lineage and tags. `earlier` knows what merges of the same versions found, `recovery` takes
up a merge that was stopped, `recording` fills the run, `pointing` moves the alias where the merge
existed already; `outcomes` are what commands print. `changing` makes a merge of another one, with
sources added or taken out, `keeping` has what each source contributed, `adapting` one adapter of
the whole change. `examining` hands base, sources and merged weights to a user's evaluator.
"""
