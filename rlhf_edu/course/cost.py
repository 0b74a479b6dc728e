"""The cost calculator of chapter 10."""

import ipywidgets

from rlhf_edu.course.widgets import Panel

# Petaflop/s-days of three trainings (InstructGPT, 5.1), all 175B.
WORK = {"GPT-3, pretraining": 3640.0, "PPO-ptx": 60.0, "SFT": 4.9}


def days(petaflop_s_days: float, gpus: int, peak_teraflops: float, utilisation: float) -> float:
    """Days that a training takes on so many GPUs, each at a share of its peak."""
    return petaflop_s_days * 1000 / (gpus * peak_teraflops * utilisation)


class CostCalculator(Panel):
    """From petaflop/s-days to days and money: sliders for the machine, a table of three trainings.

    The default is a node of eight A100, whose dense 16-bit peak is 312 teraflop/s each.
    """

    def __init__(self, gpus: int = 8, peak: int = 312, utilisation: int = 40) -> None:
        super().__init__()
        wide = {"style": {"description_width": "170px"}, "layout": {"width": "520px"}}
        self.gpus = ipywidgets.SelectionSlider(
            options=[1, 2, 4, 8, 16, 64, 256, 1024, 4096], value=gpus, description="GPUs", **wide
        )
        self.peak = ipywidgets.IntSlider(
            peak, min=10, max=1000, description="peak of one, teraflop/s", **wide
        )
        self.utilisation = ipywidgets.IntSlider(
            utilisation, min=5, max=100, step=5, description="utilisation, %", **wide
        )
        self.price = ipywidgets.FloatSlider(
            value=2.0, min=0.0, max=10.0, step=0.5, description="a GPU-hour, $ (a guess)", **wide
        )
        controls = [self.gpus, self.peak, self.utilisation, self.price]
        for control in controls:
            control.observe(self.refresh, "value")
        self._build(controls)

    def days(self) -> dict[str, float]:
        """Days of each training on this machine."""
        machine = self.gpus.value, self.peak.value, self.utilisation.value / 100
        return {name: days(work, *machine) for name, work in WORK.items()}

    def view(self) -> str:
        """A table with a bar for the days of each training."""
        found, rows = self.days(), ""
        longest = max(found.values())
        for name, number in found.items():
            gpu_days = number * self.gpus.value
            cells = (name, f"{WORK[name]:,.1f}", _days(number), f"{gpu_days:,.0f}")
            cells += (f"{gpu_days * 24 * self.price.value:,.0f}",)
            width = max(1, round(200 * number / longest))
            bar = f'<div style="background:rgb(0,114,178);height:12px;width:{width}px"></div>'
            rows += "<tr>" + "".join(f"{_CELL}{text}</td>" for text in cells) + f"<td>{bar}</td>"
            rows += "</tr>"
        titles = ("training", "petaflop/s-days", "time here", "GPU-days", "dollars")
        head = "".join(f"{_CELL}<b>{title}</b></td>" for title in titles)
        return f"<table><tr>{head}</tr>{rows}</table>"

    def words(self) -> str:
        """The times in a sentence."""
        times = ", ".join(f"{name} {_days(number)}" for name, number in self.days().items())
        machine = f"{self.gpus.value} GPUs of {self.peak.value} teraflop/s"
        return f"Cost calculator, {machine} at {self.utilisation.value} %: {times}."


_CELL = '<td style="text-align:left;padding:2px 12px 2px 0">'


def _days(number: float) -> str:
    """Days as people would say them."""
    if number >= 730:
        return f"{number / 365:,.1f} years"
    return f"{number:,.1f} days" if number >= 2 else f"{number * 24:,.1f} hours"
