"""Speed and memory of every trainer, alone or beside TRL's, and how they grow.

It may use everything but `course`; only the command line imports it.
"""
