"""Moving: a queue that is made anew under its name, what is in one queue into another, a queue that nobody needs away.

What is to be done next follows from what stands at the broker and from nothing else: whoever broke off is run again.
"""
