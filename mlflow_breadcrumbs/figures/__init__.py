"""Plain rows in, PNG out.

`results` draws what a merge came to, `studies` sweeps and their like, `aliases` who was live when;
`canvas` is what they draw on.
"""
