"""The commands, by what they are for; each parses, calls one library function, and prints.

They import what they call when they are called: a help text must not wait for torch.
"""
