"""`dcgan-dist doctor`: is this machine fit for this run? What is not, and what to do about it.

Each check has two halves: one that touches the machine and returns facts, and one, a pure function, that judges them.
"""
