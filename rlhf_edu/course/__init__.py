"""What the notebooks show and click: live curves, widgets, the checks of
exercises, and the editions made from the notebooks.

It may use everything but `bench`; notebooks and the command line import it.
"""

from rlhf_edu import lazy

__all__, __getattr__ = lazy(
    __name__,
    {
        "notebook": "start show progress mine_or_ours Live LiveCurve Progress",
        "microscope": "Microscope",
        "exercises": "hint solution",
    },
)
