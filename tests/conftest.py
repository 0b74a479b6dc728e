"""What holds for every test: no network, one torch thread, the same examples at every run."""

import no_network

no_network.install()

import rlhf_edu  # noqa: F401  (before torch: it sets the thread policy)

# isort: split
import hypothesis
import torch

torch.set_num_threads(1)

# Derandomised, so that a failing test fails again; no deadline, as a shared machine may stall.
hypothesis.settings.register_profile(
    "rlhf_edu", deadline=None, derandomize=True, database=None, max_examples=50
)
hypothesis.settings.load_profile("rlhf_edu")
