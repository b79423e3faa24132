"""What is in a version, and what was made from it.

`statement` builds and reads `lineage.json`, `builder` says which code and machine made it;
`kept_parts` is how it names what each source contributed, `kept_adapters` the adapter that was
made of the change, `stories` tell it to people;
`contents` reads a version's lineage, bytes and run, checked; `ancestry_tags` are the tags that
follow from a lineage; `relatives` asks for ancestors and descendants, `drawing` draws them,
`difference` holds two versions side by side, `described` their records alone.
"""
