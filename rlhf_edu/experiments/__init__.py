"""What is measured in the tiny web: exams, the ladder, its base models and their build, and the
findings of the papers over several seeds.

It uses the core and `tinyweb`; `bench`, `course` and the command line may import it.
"""

from rlhf_edu import lazy

__all__, __getattr__ = lazy(
    __name__,
    {
        "exam": "answer_all few_shot_prefix kl_to_reference",
        "ladder": "Ladder Recipe",
        "bases": "BASES",
        "grid": "each_seed",
        "findings": "look_up",
        "plots": "BLUE ORANGE GREEN YELLOW SKY PINK GREY LINES",
    },
)

# The modules that hold a grid and its findings: `python -m rlhf_edu experiment NAME`.
EXPERIMENTS = ("best_of_n", "counted", "exact", "fresh", "grouping", "rl", "sft", "sizes")
