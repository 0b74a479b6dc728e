"""What the notebooks show and click: live curves, widgets, the checks of
exercises, and the editions made from the notebooks.

It may use everything but `bench`; notebooks and the command line import it.
"""
