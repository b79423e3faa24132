"""THE main flow: registered versions in, one merged, evaluated, registered version out.

`flow` is all of it on one page; `inputs` opens what goes in, `configurations` tells
whether the sources compute as the base does, `recovery` takes up a merge that was
stopped, `recording` fills the run.
"""
