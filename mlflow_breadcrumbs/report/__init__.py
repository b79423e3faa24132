"""One page about a merged version.

`contents` gathers all that is known, `page` writes it as HTML.
"""
