"""Code as users write it. It is never run: mypy and pyright, both strict, have to agree with it.

What they must refuse carries a ``type: ignore``; mypy calls it unused when nothing is refused there.
"""
