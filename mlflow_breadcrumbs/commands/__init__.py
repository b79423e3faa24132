"""The commands, by what they are for; each parses, calls one library function, and prints.

`merging`, `merging_files`, `sharding`, `comparing`, `searching`, `versions`, `promoting`,
`auditing`, `lineage`, `history`, `pulling`, `webhooks` and `demonstration` hold them; `options` are
what they take in common, `addresses` how they are told versions, `task_choice` which task file,
`evaluator_choice` what measures in its place, `experiments` what those take that make runs,
`spreading` those whose work others can do, `changes` what `merge --from` takes, `mergekit_choice`
what `--mergekit` does, `printing` and `terminal` how they answer, `volume` how much they say.

They import what they call when they are called: a help text must not wait for torch.
"""
