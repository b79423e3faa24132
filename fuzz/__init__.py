"""Fuzzing: damaged input of every kind that comes from outside, and nothing but our own errors.

`targets` says what reads each kind; `mutations` damages the examples of `corpus/`; `python -m fuzz`
runs them for a while and counts, and so does `make fuzz`. A short run is among the tests.
`python -m fuzz.guided` does it with atheris, by the branches that an input reaches.
"""
