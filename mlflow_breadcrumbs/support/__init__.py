"""Plain helpers that know neither models nor MLflow.

`canonical` writes JSON whose bytes are fixed, and hashes it; `devices` chooses a torch device;
`processes` tells processes apart, and who runs this one; `executors` have independent pieces of
work done here or elsewhere, `ray_workers` on a Ray cluster; `people` tells users apart; `progress`
is how long work is reported; `scratch` makes temporary folders; `copies` copies large files,
`descriptors` reads and writes files at an offset; `confined` keeps a path that somebody gave inside
a folder; `outputs` checks and writes the files that a user asked for; `tables` writes CSV and
Markdown; `documents` reads YAML, `json_documents` JSON, both within limits; `validation` says what
is wrong with their fields; `intake` takes small files in; `defaults` are taken where nobody says
otherwise; `intervals` says how sure a share is, `scales` what a metric's numbers mean; `programs`
runs one of the user's; `extras` asks for optional packages, `packages` fetches archives of public
registries; `credentials` masks passwords,
`escaping` makes foreign text fit to be shown, and `wording` says numbers, times, yes and no.
"""
