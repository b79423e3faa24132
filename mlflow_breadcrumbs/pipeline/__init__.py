"""THE main flow: registered versions in, one merged, evaluated, registered version out.

`flow` is all of it on one page; `inputs` opens what goes in, `recovery` takes up a merge that was
stopped, `recording` fills the run.
"""
