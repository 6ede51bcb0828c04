"""A demonstration: a shop of five services (`rabbitevents.demo.shop`), and what counts every effect of theirs.

``rabbitevents demo`` runs it. The shop is written as a user's code would be; the rest is machinery around it.
"""
