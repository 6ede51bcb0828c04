"""What an operator asks: how a bus is wired, what stands at its broker, and what is wrong with it.

`wiring` says what a bus is, without a broker. `effective` and `standing` are what a broker has. `looking` makes a
`scene.Scene` of both, and `checks` find what is wrong in it: pure functions, each of which says what it has to see.
"""
