"""Real models and real preferences, one command each: formats of data files, sources of
models, runs.

It uses the core alone; `bench`, `course` and the command line may import it.
"""
