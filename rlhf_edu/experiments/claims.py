"""Findings of the papers that no experiment judges yet: a chapter shows each of them once.

Whoever writes the experiment moves the lines into its `FINDINGS` and adds the judge; see
`CONTRIBUTING.md`. So the criterion is there before the run.
"""

from rlhf_edu.experiments.grid import Finding

CLAIMS = [
    Finding(
        "F6",
        "errors pile up where a model reads its own words",
        "an equation only",
        "written freely, error per token grows with the place more than errors alone explain",
        chapter="03",
    ),
    Finding(
        "F10",
        "reward models agree with labelers they never saw",
        "72.4 ± 0.4 % in training, 69.6 ± 0.9 % held out (InstructGPT 4.1)",
        "five groups of labelers: a gap above zero by interval, below 5 points",
        chapter="04",
    ),
    Finding(
        "F12",
        "larger reward models and more labels agree better",
        "+1.8 points per doubling of the model, +1.1 of the data (Stiennon)",
        "both slopes above zero by interval",
        chapter="04",
    ),
    Finding(
        "F14",
        "differences of scores are calibrated log-odds",
        "Bai et al. Fig. 9; 174 Elo per unit",
        "calibration error below 0.05 on SFT's answers, higher on PPO's by interval",
        chapter="04",
    ),
    Finding(
        "F21",
        "two laws foretell gold from KL",
        "Gao et al.: best of n and RL each have their own",
        "error on the held-out third, per seed, lower for the paper's law by interval",
        chapter="07",
    ),
    Finding(
        "F23",
        "RL spends more KL than best of n",
        "Gao et al. 3.5",
        "at equal gain in score, KL of RL above that of best of n by interval",
        chapter="07",
    ),
    Finding(
        "F27",
        "two wrong signs give fluent answers that are as bad as can be",
        "a bug of one night (Ziegler et al.)",
        "both flipped: web loss as before and gold least; reward alone flipped: web loss explodes",
        chapter="06",
    ),
    Finding(
        "F28",
        "without a price of KL the score is hacked",
        "99.97 % positive, and gibberish",
        "score and the base model's loss on the answers both rise, by interval",
        chapter="07",
    ),
    Finding(
        "F30",
        "pretraining gradients allow a higher learning rate",
        "without them, above 8.05e-6 it diverges (InstructGPT)",
        "the rate at which gold falls is higher with them, by interval",
        chapter="08",
    ),
    Finding(
        "F31",
        "a critic of its own, started from the reward model, is best",
        "Stiennon Fig. 11",
        "final reward at least that of a shared and of a random critic, by interval",
        chapter="06",
    ),
    Finding(
        "F32",
        "after RLHF fewer facts are made up",
        "41 % for GPT-3, 21 % for InstructGPT",
        "rate of PPO below that of the base, by interval; the ratio is stated",
        chapter="10",
    ),
    Finding(
        "F33",
        "a tuned model obeys a bad instruction too",
        "toxicity asked for: .285 to .400; with respect asked for: .233 to .196",
        "the change has another sign with each instruction, by interval",
        chapter="10",
    ),
    Finding(
        "F34",
        "tuned on benchmarks is not tuned on users",
        "InstructGPT preferred to FLAN in 78 %, to T0 in 79 %",
        "the ranking of the two models flips between the two exams, by interval",
        chapter="10",
    ),
    Finding(
        "F35",
        "following instructions carries over to instructions never trained on",
        "in words",
        "SFT above the base on prompts in other words, by interval",
        chapter="03",
    ),
    Finding(
        "F36",
        "labelers who wrote no training data prefer the same models",
        "InstructGPT Fig. 3",
        "the difference of win rates has zero in its interval, which is below 5 points wide",
        chapter="10",
    ),
    Finding(
        "F41",
        "DPO's answers depend less on the temperature than PPO's",
        "61.7 % against 57.0 % at T = 0, Fig. 2 of DPO",
        "the slope of gold over temperature is flatter, by interval",
        chapter="09",
    ),
    Finding(
        "F43",
        "DPO over-optimises as well, and chosen answers can lose probability",
        "Rafailov et al. 2024, figures",
        "gold over KL has a maximum inside; the chosen log-probability falls, by interval",
        chapter="09",
    ),
    Finding(
        "F44",
        "DPO is weak on answers of somebody else, tuned PPO is not",
        ".718 for PPO, .611 for DPO on HH (Xu et al. 2024)",
        "the sign of the difference, by interval; no claim of equality",
        chapter="09",
    ),
    Finding(
        "F45",
        "memory and time can be told before",
        "7 TB for 175B; 60 against 4.9 petaflop/s-days",
        "bytes and the share of time within 15 % of what is measured",
        chapter="11",
    ),
    Finding(
        "F47",
        "neighbours replace the critic",
        "GRPO: 88.2 and 51.7 %",
        "equal exact reward by interval, with less memory; the drift of length is reported",
        chapter="12",
    ),
    Finding(
        "F48",
        "rounds of labels help",
        "Bai et al.: 74, 70 and 67 % of newer comparisons told rightly",
        "three rounds end above one at equal labels, by interval",
        chapter="12",
    ),
    Finding(
        "F49",
        "the released answers say so themselves",
        "InstructGPT Table 14",
        "the same direction as the table on the released samples",
    ),
]
